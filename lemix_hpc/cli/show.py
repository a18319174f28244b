"""How progress looks: a line, or a panel with a bar for each stage."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table

from lemix_hpc.runtime.records import Progress


def progress_line(state: str, progress: Progress | None) -> str:
    """One line on a run."""
    return ", ".join([state.lower() if progress is None else f"{state.lower()} ({progress.state})", *_facts(progress)])


def progress_panel(state: str, progress: Progress | None) -> RenderableType:
    """The line, and how busy each stage is."""
    line = progress_line(state, progress)
    if progress is None or not progress.stage_busy:
        return line
    bars = Table.grid(padding=(0, 1))
    for node, stages in enumerate(progress.stage_busy):
        for stage, busy in enumerate(stages):
            bars.add_row(f"node {node} stage {stage}", ProgressBar(total=1.0, completed=busy, width=30), f"{busy:4.0%}")
    return Group(line, bars)


def _facts(progress: Progress | None) -> list[str]:
    if progress is None:
        return []
    facts = [f"{progress.elapsed_s:.1f} s"]
    if progress.message:
        facts.append(progress.message)
    if progress.requests:
        facts.append(f"served {progress.served}/{progress.requests}")
    if progress.trained or progress.training_total:
        total = "" if progress.training_total is None else f"/{progress.training_total}"
        facts.append(f"trained {progress.trained}{total} in {progress.steps} steps")
    if progress.loss is not None:
        facts.append(f"loss {progress.loss:.4f}")
    if progress.response_ms_p50 is not None:
        facts.append(f"response p50 {progress.response_ms_p50:.1f} ms")
    return facts
