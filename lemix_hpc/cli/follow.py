"""Follow a run to its end: live progress, then the report or what went wrong."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable

import typer
from rich.console import Console
from rich.live import Live

from lemix_hpc.cli.interrupts import Interrupts
from lemix_hpc.cli.live.as_json import as_data
from lemix_hpc.cli.live.lines import Lines
from lemix_hpc.cli.live.picture import Picture, pictures
from lemix_hpc.cli.live.screen import screen
from lemix_hpc.cli.show import render_report
from lemix_hpc.config.errors import UserError
from lemix_hpc.launch.endings import failures
from lemix_hpc.launch.logs import last_lines, launcher_logs
from lemix_hpc.launch.rundir import RunDir
from lemix_hpc.launch.slurm_job import how_it_ended
from lemix_hpc.launch.start import StartedRun
from lemix_hpc.launch.states import read_report
from lemix_hpc.records.attempts import AttemptEnd, attempts
from lemix_hpc.records.files import is_full

DRAW_EVERY_S = 0.5
DRAWING_SHARE = 0.03
"""Of a core: a large screen takes longer, and is drawn less often."""
LOGS_SHOWN = 3
EXIT_INTERRUPTED = 130


def follow(start: Callable[[], StartedRun], *, as_json: bool) -> int:
    """Start a run and show it until it ends. Returns the exit code: 0, 1 if it failed, 130 if the user interrupted it."""
    interrupts = Interrupts()
    started = start()
    console, lines = Console(stderr=True), Lines()
    console.print(f"{started.record.id}: {started.run.path}", soft_wrap=True, highlight=False)
    asked_to_stop = False
    while True:
        try:
            interrupts.release()
            state = _watch(started, console, lines).state
            break
        except KeyboardInterrupt:
            if started.run.profile_order.exists():
                return _cancelled(started, "Interrupted; what was measured is kept.")
            if asked_to_stop:
                return _cancelled(started, "Interrupted again; cancelling the run.")
            asked_to_stop = True
            _stop(started)
    code = _report(started, state, as_json=as_json)
    return EXIT_INTERRUPTED if asked_to_stop else code


def watch(run: RunDir, *, as_json: bool) -> int:
    """Show a run until it ends, and how it ended. Returns the exit code: 0, 1 if it failed, 130 if the user looked away."""
    started, console = StartedRun(run, run.read_record()), Console()
    try:
        picture = _in_json(started) if as_json else _watch(started, console, Lines())
    except KeyboardInterrupt:
        typer.echo(f"{run.id} goes on", err=True)
        return EXIT_INTERRUPTED
    if console.is_terminal and not as_json:
        console.print(screen(picture, console.width, console.height))
    if _tell_end(started, picture.state):
        return 1
    typer.echo(f"`lemix report {run.id}` prints its report", err=True)
    return 0


def _watch(started: StartedRun, console: Console, lines: Lines) -> Picture:
    """`lines`: what has been said where there is no screen. Returns the picture of its end."""
    return _on_screen(started, console) if console.is_terminal else _in_lines(started, console, lines)


def _in_lines(started: StartedRun, console: Console, lines: Lines) -> Picture:
    for picture in pictures(started):
        clock = time.strftime("%H:%M:%S", time.localtime(picture.now))
        for line in lines.news(picture):
            console.print(f"{clock}  {line}", soft_wrap=True, highlight=False, markup=False)
    return picture


def _in_json(started: StartedRun) -> Picture:
    """A line for a program whenever there is one for people."""
    lines = Lines()
    for picture in pictures(started):
        if lines.news(picture):
            typer.echo(json.dumps(as_data(picture)))
    return picture


def _on_screen(started: StartedRun, console: Console) -> Picture:
    due = -math.inf
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for picture in pictures(started):
            if time.monotonic() >= due:
                began = time.process_time()
                live.update(screen(picture, console.width, console.height), refresh=True)
                due = time.monotonic() + max(DRAW_EVERY_S, (time.process_time() - began) / DRAWING_SHARE)
    return picture


def _stop(started: StartedRun) -> None:
    """The first Ctrl-C."""
    from lemix_hpc.launch.cancel import stop

    try:
        told = stop(started.run, started.record)
    except UserError as error:
        typer.echo(f"\n{error}", err=True)  # it has just ended
        return
    typer.echo(f"\n{started.record.id} {told}. Ctrl-C again cancels it.", err=True)


def _cancelled(started: StartedRun, because: str) -> int:
    """The second Ctrl-C, or the first one in a profiling job, which has nothing to finish."""
    from lemix_hpc.launch.cancel import cancel

    typer.echo(f"\n{because}", err=True)
    try:
        cancel(started.run, started.record)
    except UserError as error:
        typer.echo(str(error), err=True)
    if started.process is not None:
        started.process.wait()
    return EXIT_INTERRUPTED


def _report(started: StartedRun, state: str, *, as_json: bool) -> int:
    end = _end_of(started)
    # Of a run that came to an end by itself there is a report in any case.
    reports = end is not None and end.reason in ("unsaved", "diverged")
    failed = _tell_end(started, state)
    if failed and not reports:
        return 1
    if not started.run.report.exists():
        typer.echo(f"The run is done, but its report {started.run.report} is not visible on this host.", err=True)
        return 1
    report = read_report(started.run)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        Console().print(render_report(started.run, report), crop=False)
    return int(failed)


def _tell_end(started: StartedRun, state: str) -> bool:
    """Say what is not plain of its end. Whether the run has failed."""
    end = _end_of(started)
    if state != "COMPLETED":
        _explain_failure(started, state)
    elif end is not None and end.reason == "drained":
        typer.echo(
            f"The run ended before all was done: {end.message}. `lemix resume {started.record.id}` goes on.", err=True
        )
    return state != "COMPLETED"


def _explain_failure(started: StartedRun, state: str) -> None:
    run, end, attempt = started.run, _end_of(started), started.run.last_attempt
    typer.echo(f"The run ended as {state}.", err=True)
    if end is not None and end.reason != "error":
        typer.echo(f"Attempt {len(attempts(run.path)) - 1}: {end.reason}: {end.message}", err=True)
    if attempt is not None and (told := failures(attempt).rstrip()):
        typer.echo(told, err=True)
        return
    # Ranks that were killed leave no word; whoever started them does.
    for log in launcher_logs(run)[:LOGS_SHOWN]:
        typer.echo(f"From {log}:\n{last_lines(log)}", err=True)
    if is_full(run.path):
        typer.echo(f"The file system of {run.path} is full: it may not have taken what the ranks had to say.", err=True)
    if (
        started.record.cluster == "slurm"
        and started.record.job is not None
        and (said := how_it_ended(started.record.job))
    ):
        typer.echo(said, err=True)


def _end_of(started: StartedRun) -> AttemptEnd | None:
    """Why the last attempt ended."""
    attempt = started.run.last_attempt
    return attempt.ended if attempt is not None else None
