"""`lemix capacity`: how many requests per second a cluster can take, per policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from lemix_hpc.cli import options
from lemix_hpc.cli.run import Json, Overrides, RecipePath
from lemix_hpc.cli.simulate import Split, simulated_recipe
from lemix_hpc.config.errors import UserError

if TYPE_CHECKING:
    from lemix_hpc.studies.capacity import Capacity


def capacity(
    recipe: RecipePath,
    slo: Annotated[
        float | None,
        typer.Option(help="Limit on response times, in T0. By default the recipe's limits in ms all together, else 5."),
    ] = None,
    attainment: Annotated[float, typer.Option(help="Share of requests that must meet the limit, at most 1.")] = 0.9,
    policies: options.Policies = None,
    seeds: options.Seeds = None,
    tolerance: Annotated[float, typer.Option(help="Relative width at which the search stops.")] = 0.01,
    split: Split = None,
    overrides: Overrides = None,
    as_json: Json = False,
    jobs: options.Jobs = None,
) -> None:
    """Find the highest request rate at which enough requests meet their limit. By default for the recipe's policy."""
    for option, value, most in (
        ("--slo", 5.0 if slo is None else slo, None),
        ("--attainment", attainment, 1.0),
        ("--tolerance", tolerance, 1.0),
    ):
        if not value > 0.0 or (most is not None and value > most):
            raise UserError(
                f"{option}: expected a number above 0{f' and up to {most:g}' if most else ''}; found {value:g}"
            )
    ready = simulated_recipe(recipe, overrides or [])
    if ready.serving is None:
        raise UserError("serving: the recipe serves no requests, so it has no capacity; add a `serving` section")
    from lemix_hpc.run_setup.scheduler_setup import limits_ms, placement_of

    limit = 5.0 if slo is None and not limits_ms(ready) else slo
    names = [placement_of(ready)] if policies is None else options.policy_names(policies, ready.nodes.count)
    given = options.seeds(seeds) if seeds else [ready.seed]
    from rich.console import Console
    from rich.progress import track

    from lemix_hpc.studies.capacity import Search, Target
    from lemix_hpc.studies.sweep import spread

    search = Search(ready, Target(limit, attainment, tuple(given), tolerance), options.split_of(split))
    for name in names:
        search.recipes(name)
    answers = spread(search, names, jobs=options.processes(jobs))
    shown = track(answers, "searching", len(names), console=Console(stderr=True), transient=True)
    found = list(shown)
    if as_json:
        typer.echo(json.dumps([_plain(one) for one in found]))
        return
    _print(found, limit, attainment)


def _plain(found: Capacity) -> dict[str, object]:
    from dataclasses import asdict

    return {**asdict(found), "share_of_bound": found.share_of_bound}


def _print(found: Sequence[Capacity], slo: float | None, attainment: float) -> None:
    from rich import box
    from rich.table import Table

    from lemix_hpc.cli.show import print_wide
    from lemix_hpc.report.table import number, percent

    within = "are within all limits" if slo is None else f"take at most {slo:g} T0"
    title = f"highest rate at which {percent(attainment)} of responses {within}"
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False, title=title, title_justify="left")
    for name in ("policy", "requests/s", "attainment", "N S / T0", "share of it", "rates tried", ""):
        table.add_column(name, justify="left" if name in ("policy", "") else "right")
    for one in found:
        note = {
            "found": "",
            "misses": "even the lowest rate misses",
            "holds": "the highest rate tried meets the limit",
        }[one.verdict]
        sign = {"found": "", "misses": "< ", "holds": "> "}[one.verdict]
        rate, share = sign + number(one.rate), sign + percent(one.share_of_bound)
        table.add_row(one.policy, rate, percent(one.attainment), number(one.bound), share, str(one.tried), note)
    print_wide(table)
