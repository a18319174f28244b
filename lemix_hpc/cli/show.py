"""How progress looks, a line or a panel with bars, what is shown in the end, and how wide tables are printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lemix_hpc.config.errors import UserError
from lemix_hpc.records.made_by import made_by
from lemix_hpc.records.schema import Progress

if TYPE_CHECKING:
    from lemix_hpc.launch.rundir import RunDir


def progress_line(state: str, progress: Progress | None) -> str:
    """One line on a run."""
    return ", ".join([state.lower() if progress is None else f"{state.lower()} ({progress.state})", *_facts(progress)])


def progress_panel(state: str, progress: Progress | None) -> RenderableType:
    """The line, and how busy each stage is."""
    line = progress_line(state, progress)
    if progress is not None and progress.to_measure:
        return Group(line, ProgressBar(total=progress.to_measure, completed=progress.measured, width=60))
    if progress is None or not progress.stage_busy:
        return line
    bars = Table.grid(padding=(0, 1))
    for node, stages in enumerate(progress.stage_busy):
        for stage, busy in enumerate(stages):
            bars.add_row(f"node {node} stage {stage}", ProgressBar(total=1.0, completed=busy, width=30), f"{busy:4.0%}")
    return Group(line, bars)


def render_report(run: RunDir, report: dict[str, Any]) -> RenderableType:
    """The report of a run, or what a profiling job has found. Raises UserError if it lacks what is to be shown."""
    from lemix_hpc.report.table import render

    profile = run.profile_order.exists()
    try:
        return _profile_table(report) if profile else render(report)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        # One that this version has written has all that is shown.
        again = "" if profile else ", or remove it, and one is made again"
        raise UserError(
            f"{run.report}: not a report that this version can show: {type(error).__name__}: {error}{made_by(run.report)}; "
            f"`lemix report --json` prints it as it is{again}"
        ) from error


def print_wide(table: Table) -> None:
    """As wide as it is: a table that is cut or folded cannot be read."""
    console = Console()
    wanted = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    Console(width=max(console.width, wanted)).print(table)


def _profile_table(report: dict[str, Any]) -> RenderableType:
    """How well the fitted times of each stage hold on points that the fit did not see."""
    from lemix_hpc.profiling.coefficients import load_coefficients

    file = load_coefficients(Path(report["coefficients"]))
    table = Table(title=f"{file.model}, {file.dtype}, on {file.hardware}", title_justify="left")
    for column in ("stage", "pass", "points", "median error", "95 %", "largest"):
        table.add_column(column, justify="left" if column == "pass" else "right")
    for stage, times in enumerate(file.stages or []):
        for kind in ("forward", "backward"):
            found = getattr(times.residuals, kind) if times.residuals else None
            if found is not None:
                errors = (found.median_rel_error, found.p95_rel_error, found.max_rel_error)
                table.add_row(str(stage), kind, str(found.points), *(f"{error:.1%}" for error in errors))
    missing = f", {report['did_not_fit']} did not fit into memory" if report["did_not_fit"] else ""
    path = Text(report["coefficients"], no_wrap=True, overflow="ignore")
    return Group(table, *report["warnings"], f"{report['points']} points in {report['seconds']} s{missing}", path)


def _classes(progress: Progress) -> list[str]:
    """How requests of each class fare lately, where tokens have limits, or there are batch requests."""
    facts = []
    for name, figures in progress.classes.items():
        shares = [f"{share:.1%} within {limit}" for limit, share in figures.attainment.items() if share is not None]
        times = [
            f"{what} p50 {found['p50']:.1f} p99 {found['p99']:.1f} ms"
            for what, found in (
                ("TTFT", figures.ttft_ms),
                ("TPOT", figures.tpot_ms),
                ("between tokens", figures.inter_token_ms),
            )
            if found["p50"] is not None
        ]
        if figures.tpot_ms["p50"] is not None or name == "batch":
            facts.append(f"{name}: {' · '.join([str(figures.finished), *times, *shares])}")
    return facts


def _facts(progress: Progress | None) -> list[str]:
    if progress is None:
        return []
    facts = [f"{progress.elapsed_s:.1f} s"]
    if progress.message:
        facts.append(progress.message)
    if progress.address and progress.state == "running":
        keys = "" if progress.keys is None else f", key in {progress.keys}"
        facts.append(f"OpenAI API at {progress.address}/v1{keys}")
    if progress.to_measure:
        facts.append(f"{progress.measured}/{progress.to_measure} points")
    if progress.left_s is not None:
        facts.append(f"{progress.left_s:.0f} s left")
    if progress.requests:
        facts.append(f"served {progress.served}/{progress.requests}")
    if progress.trained or progress.training_total:
        total = "" if progress.training_total is None else f"/{progress.training_total}"
        facts.append(f"trained {progress.trained}{total} in {progress.steps} steps")
    if progress.checkpoint_step is not None:
        facts.append(f"checkpoint at step {progress.checkpoint_step}")
    if progress.loss is not None:
        facts.append(f"loss {progress.loss:.4f}")
    if progress.response_ms_p50 is not None:
        facts.append(f"response p50 {progress.response_ms_p50:.1f} ms")
    facts += _classes(progress)
    if progress.checkpoint_failure is not None:
        facts.append(f"not saved: {progress.checkpoint_failure}")
    if progress.disk is not None:
        facts.append(f"disk: {progress.disk}")
    facts += _not_finite(progress)
    facts += [f"drift: stage {d.stage} {d.kind} takes {d.ratio:.2g} x its predicted time" for d in progress.drift]
    facts += [f"slow: node {s.node} stage {s.stage}, {s.ratio:.2g} x the others' time" for s in progress.stragglers]
    return facts


def _not_finite(progress: Progress) -> list[str]:
    """The alarm of training that has broken down."""
    alarms = []
    if progress.skipped:
        stopped = "; training has stopped (training.on_nan)" if progress.training_stopped else ""
        alarms.append(f"{progress.skipped} more steps skipped: their gradients are not finite{stopped}")
    if progress.lost_losses:
        alarms.append(f"the loss of {progress.lost_losses} micro-batches is not finite")
    return alarms
