"""`lemix report`: what a run comes to, as a table, as data, or in figures; of several runs side by side."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lemix_hpc.cli.about import model_of
from lemix_hpc.cli.run import Json, run_names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lemix_hpc.launch.rundir import RunDir
    from lemix_hpc.report.shown_run import ShownRun
    from lemix_hpc.report.sweep import Sweep

Html = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write a page with figures, to look at in a browser.", show_default=False),
]
Png = Annotated[Path | None, typer.Option(metavar="DIR", help="Write each figure as a picture.", show_default=False)]


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            autocompletion=run_names,
            help="Runs as for other commands: an id, `last` and so on; or files of `lemix compare --json`. Several with "
            "--html or --png.",
            show_default=False,
        ),
    ],
    as_json: Json = False,
    html: Html = None,
    png: Png = None,
    serve_only: Annotated[
        bool,
        typer.Option(
            "--serve-only",
            help="Simulate each run's load without its training, too: what training cost serving. Later reports have it.",
        ),
    ] = False,
) -> None:
    """Print the report of a run; of one that goes on, or was cut off, what there is so far. Or compare runs in figures."""
    from lemix_hpc.config.errors import UserError
    from lemix_hpc.launch.registry import find_run

    if as_json and (html is not None or png is not None):
        raise UserError("--json goes with neither --html nor --png")
    if sweeps := [run for run in runs if run.endswith(".json") and Path(run).is_file()]:
        if len(sweeps) < len(runs):
            raise UserError(f"{sweeps[0]} is a comparison; give it without runs")
        if serve_only:
            raise UserError("--serve-only is for runs, and comparisons are of simulated ones")
        _draw_sweeps(sweeps, html, png)
        return
    found = [find_run(run) for run in runs]
    if serve_only:
        for run in found:
            _simulate_serve_only(run)
    if html is not None or png is not None:
        _draw(found, html, png)
        return
    if len(found) > 1:
        raise UserError("several runs are compared in figures: give --html FILE or --png DIR, or one run")
    content = _report(found[0])
    if as_json:
        typer.echo(json.dumps(content))
        return
    from rich.console import Console

    from lemix_hpc.cli.show import render_report

    Console().print(render_report(found[0], content), crop=False)


def _simulate_serve_only(run: RunDir) -> None:
    """What training cost serving, into the run's directory."""
    from lemix_hpc.config.errors import UserError
    from lemix_hpc.report.training_cost import write_cost
    from lemix_hpc.studies.serve_only import cost_of_training

    cost = cost_of_training(run.path, run.recipe)
    try:
        write_cost(cost, run.path)
    except OSError as error:
        raise UserError(f"--serve-only: {run.path} cannot be written: {error.strerror}") from error


def _report(run: RunDir) -> dict[str, Any]:
    from lemix_hpc.launch.run_report import report_of
    from lemix_hpc.launch.states import run_state

    content = report_of(run)
    if not content.get("complete", True):
        state = run_state(run, run.read_record())
        typer.echo(f"{run.id} is {state} and not complete; this is what it has done so far.", err=True)
    return content


def _draw(runs: list[RunDir], html: Path | None, png: Path | None) -> None:
    from lemix_hpc.config.errors import UserError
    from lemix_hpc.report.png.write import check_pictures, write_pictures

    twice = next((run for place, run in enumerate(runs) if run.path in (each.path for each in runs[:place])), None)
    if twice is not None:
        raise UserError(f"{twice.id}: is there twice; a run is compared with others")
    if png is not None:
        check_pictures()
    ids = [run.id for run in runs]
    # Runs of one name in different directories are told apart by these.
    names = [run.id if ids.count(run.id) == 1 else str(run.path) for run in runs]
    shown = [_shown(run, name) for run, name in zip(runs, names, strict=True)]
    if html is not None:
        from lemix_hpc.report.html.page import render_page

        _write_page(render_page(shown), html)
    if png is not None:
        _write_pictures(lambda: write_pictures({run.name: run.aggregates for run in shown}, png), png)


def _draw_sweeps(paths: list[str], html: Path | None, png: Path | None) -> None:
    """Of files of `lemix compare`."""
    from lemix_hpc.config.errors import UserError
    from lemix_hpc.report.sweep import parts, read_sweep

    if html is None and png is None:
        raise UserError(f"{paths[0]}: a comparison is drawn; give --html FILE or --png DIR")
    sweeps = {path: read_sweep(Path(path)) for path in paths}
    if png is not None and not any(map(parts, sweeps.values())):
        raise UserError(f"--png: {paths[0]} has one load only, of which there are no lines; compare several --rates")
    draw_sweeps(sweeps, html, png)


def draw_sweeps(sweeps: Mapping[str, Sweep], html: Path | None, png: Path | None) -> None:
    """Comparisons by their names, as a page and as pictures."""
    from lemix_hpc.report.png.write import check_pictures

    if png is not None:
        check_pictures()
    if html is not None:
        from lemix_hpc.report.html.sweep import render_sweeps

        _write_page(render_sweeps(sweeps), html)
    if png is not None:
        from lemix_hpc.report.png.sweep import write_sweeps

        _write_pictures(lambda: write_sweeps(sweeps, png), png)


def _write_pictures(write: Callable[[], Sequence[Path]], directory: Path) -> None:
    from lemix_hpc.config.errors import UserError

    try:
        pictures = write()
    except OSError as error:
        raise UserError(f"{directory}: cannot be written: {error.strerror}") from error
    typer.echo(f"Wrote {len(pictures)} pictures to {directory}", err=True)


def _write_page(page: str, path: Path) -> None:
    from lemix_hpc.config.errors import UserError
    from lemix_hpc.records.files import replace

    content = page.encode(errors="backslashreplace")
    try:
        replace(path, content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    typer.echo(f"Wrote {path}, {len(content) / 1e6:.1f} MB", err=True)


def _shown(run: RunDir, name: str) -> ShownRun:
    from lemix_hpc.config.errors import UserError
    from lemix_hpc.records.reader import stream_run
    from lemix_hpc.report.aggregates.gather import gather
    from lemix_hpc.report.shown_run import ShownRun
    from lemix_hpc.report.table import number

    if run.profile_order.exists():
        raise UserError(
            f"{run.id} is a profiling job, of which there are no figures; `lemix report {run.id}` prints its result"
        )
    content, record = _report(run), run.read_record()
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.created))
    where = "simulated" if record.cluster == "simulated" else record.cluster
    about = [
        ("model", model_of(run)),
        ("policy", f"{content['policy']}, {content['engine']} engine"),
        ("size", f"{content['nodes']} x {content['stages']} stages, {number(content['duration_s'])} s"),
        ("where", f"{where}{f', job {record.job}' if record.job else ''}, from {record.host} on {started}"),
        ("attempts", str(len(content["attempts"])) if len(content["attempts"]) > 1 else ""),
        ("directory", str(run.path)),
    ]
    return ShownRun(name, [(what, told) for what, told in about if told], content, gather(stream_run(run.path)))
