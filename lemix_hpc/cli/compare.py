"""`lemix compare`: a grid of simulated runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lemix_hpc.cli import options
from lemix_hpc.cli.headings import heading, shown
from lemix_hpc.cli.report import Html, Png, draw_sweeps
from lemix_hpc.cli.run import Overrides, RecipePath
from lemix_hpc.cli.simulate import Split, simulated_recipe
from lemix_hpc.config.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from lemix_hpc.studies.compare import Row
    from lemix_hpc.studies.sweep import Done


def compare(
    recipe: RecipePath,
    policies: options.Policies = "all",
    rates: options.Rates = None,
    training_shares: options.TrainingShares = None,
    seeds: options.Seeds = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Policy to compare with. By default separate if it is compared, else the first."
        ),
    ] = None,
    split: Split = None,
    overrides: Overrides = None,
    csv: options.Csv = None,
    json: options.Json = None,
    html: Html = None,
    png: Png = None,
    jobs: options.Jobs = None,
) -> None:
    """Simulate policies under many loads, and print means over the seeds with ratios to a baseline."""
    ready = simulated_recipe(recipe, overrides or [])
    names = options.policy_names(policies or "all", ready.nodes.count)
    given_rates, given_shares = (
        options.rates(rates) if rates else [],
        options.shares(training_shares) if training_shares else [],
    )
    given_seeds, given_split = options.seeds(seeds) if seeds else [], options.split_of(split)
    from lemix_hpc.studies.sweep import Grid, run_grid

    base = _baseline(baseline, names)
    if png is not None:
        check_lines(given_rates, given_shares)
    grid = Grid(ready, names, given_rates, given_shares, given_seeds, given_split)
    done = show_all(run_grid(grid, jobs=options.processes(jobs)), len(grid.cells()), "simulating")
    show_grid(ready.name, done, base, csv=csv, json=json, html=html, png=png)


def show_grid(
    name: str,
    done: Sequence[Done],
    baseline: str,
    *,
    csv: Path | None,
    json: Path | None,
    html: Path | None,
    png: Path | None,
) -> None:
    """Print the table of a grid that has been run, and write the files that were asked for."""
    from lemix_hpc.cli.show import print_in_parts
    from lemix_hpc.studies.compare import as_csv, as_json, as_sweep, summed_up

    rows = summed_up(done, baseline)
    _write(csv, as_csv(done))
    _write(json, as_json(done, rows, baseline))
    print_in_parts(_table(rows, baseline), beside=LOAD)
    for one in done:
        if one.broken:
            typer.echo(f"not complete, and in no figure: {one.broken}", err=True)
    if html is not None or png is not None:
        draw_sweeps({name: as_sweep(rows, baseline)}, html, png)


def check_lines(rates: Sequence[float], shares: Sequence[float]) -> None:
    """Before runs are simulated for nothing. Raises UserError where no picture could be drawn."""
    from lemix_hpc.report.png.write import check_pictures

    check_pictures()
    if len(set(rates)) < 2 and len(set(shares)) < 2:
        raise UserError("--png: one load has no lines; give several --rates or --training-shares")


def _baseline(asked: str | None, names: Sequence[str]) -> str:
    if asked is None:
        return "separate" if "separate" in names else names[0]
    if asked not in names:
        raise UserError(f"--baseline: {asked} is not among the policies of this comparison: {', '.join(names)}")
    return asked


def show_all(answers: Iterator[Done], total: int, what: str) -> list[Done]:
    """All runs of a grid, with a bar while they come: `what` is done meanwhile."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (what, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    done = []
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        for one in progress.track(answers, total=total):
            done.append(one)
    return done


def _write(path: Path | None, text: str) -> None:
    if path is None:
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def _table(rows: Sequence[Row], baseline: str) -> Table:
    from rich import box
    from rich.table import Table

    slo = [name for name in rows[0].means if name.startswith("slo_")]
    aim = slo[len(slo) // 2]
    figures = ("throughput", "per_active_node", *slo, "p50_ms", "p99_ms", "bubble_rate", "active_nodes", "trained")
    figures += ("micro_batches_per_s", "hold_mean_s", "hold_max_s")
    if rows[0].means["limits_met"] is not None:
        figures += ("limits_met", "training_tokens_per_s", "tokens_per_stage_s")
    if rows[0].means["batch_tokens_per_s"] is not None:
        figures += ("batch_tokens_per_s",)
    if rows[0].means["fullest_stage"] is not None:
        figures += ("fullest_stage",)
    compared = ("throughput", "per_active_node", aim, "p99_ms")
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
    for name in (*LOAD, *map(heading, figures)):
        table.add_column(name, justify="left" if name == "policy" else "right", no_wrap=True)
    for name in compared:
        table.add_column(f"{heading(name)} / {baseline}", justify="right")
    for number, row in enumerate(rows):
        load = row.rate, row.training_share
        first = number == 0 or load != (rows[number - 1].rate, rows[number - 1].training_share)
        last = number + 1 == len(rows) or load != (rows[number + 1].rate, rows[number + 1].training_share)
        cells = [_load(value) if first else "" for value in load]
        means = [shown(name, row.means[name]) for name in figures]
        ratios = [shown("ratio", row.ratios[name]) for name in compared]
        table.add_row(*cells, _policy(row), *means, *ratios, end_section=last)
    return table


LOAD = ("rate/s", "training", "policy")
"""The columns that say of what the figures of a row are."""


def _load(value: float | None) -> str:
    return "recipe's" if value is None else f"{value:g}"


def _policy(row: Row) -> str:
    trainers = "/".join(map(str, row.training_nodes))
    name = f"{row.policy} ({trainers} train)" if trainers else row.policy
    return f"{name} ({row.broken} of {row.runs} broken)" if row.broken else name
