"""The live view on a terminal: what the run does, a lane for each stage, figures, and alarms."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lemix_hpc.cli.live.figures import figures
from lemix_hpc.cli.live.picture import Picture
from lemix_hpc.cli.live.words import alarms, duration, endpoint, facts_of_job, phase, time_left
from lemix_hpc.records.schema import Progress, StageUse

KINDS = (
    ("serve", "█", "green"),
    ("forward", "▓", "blue"),
    ("backward", "▒", "magenta"),
    ("step", "░", "yellow"),
    ("other", "+", "cyan"),
)
"""Kinds of work: how they are drawn, told apart without colours, too."""
IDLE = "·"
SPARKS = "▁▂▃▄▅▆▇█"
WIDE = 100
"""Columns from which lanes have their shares beside them."""
ROWS_BESIDE_LANES = 15
FEWEST_LANES = 4
PHASE_STYLES = {"COMPLETED": "bold green", "draining": "bold yellow", "running": "bold green"}


def screen(picture: Picture, width: int, height: int) -> RenderableType:
    """The view at this moment, for a terminal of so many columns and rows."""
    parts: list[RenderableType] = [_head(picture)]
    progress = picture.current
    if progress is not None and progress.state != "starting":
        parts += _body(picture, progress, width, max(FEWEST_LANES, height - ROWS_BESIDE_LANES))
    elif progress is not None and progress.engines:
        parts.append(ProgressBar(total=progress.engines, completed=progress.built, width=width // 2))
    parts += [Text(f"! {text}", style="red") for text in alarms(picture).values()]
    return Group(*parts)


def _head(picture: Picture) -> RenderableType:
    now = phase(picture)
    first = Text(picture.name, style="bold")
    first.append("  ")
    first.append(now.words, PHASE_STYLES.get(now.key, "bold red" if picture.over else "bold"))
    times = [] if now.since is None else [f"for {duration(max(0.0, picture.now - now.since))}"]
    progress = picture.current
    if progress is not None and progress.elapsed_s:
        times.append(duration(progress.elapsed_s))
    left = None if picture.over or picture.job is None else time_left(picture.job, picture.now)
    if left is not None:
        times.append(f"{duration(left)} to the time limit")
    second = [*times, *facts_of_job(picture)]
    lines = [first, *([Text(", ".join(second))] if second else [])]
    if now.hint is not None:
        lines.append(Text(now.hint, "dim"))
    if (where := endpoint(picture)) is not None:
        lines.append(Text(where))
    return Group(*lines)


def _body(picture: Picture, progress: Progress, width: int, most_lanes: int) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if picture.state == "RUNNING" and progress.state == "running" and progress.stages:
        parts += ["", _lanes(progress.stages, width, most_lanes), _legend()]
    rows = Table.grid(padding=(0, 2))
    for name, facts in figures(progress, picture.memory, over=picture.over):
        rows.add_row(Text(name, style="dim"), Text(" · ".join(facts)))
        if name == "training" and len(progress.losses) > 1:
            rows.add_row(Text("loss", style="dim"), Text(_losses(progress.losses)))
    if rows.rows:
        parts += ["", rows]
    if progress.to_measure:
        parts.append(ProgressBar(total=progress.to_measure, completed=progress.measured, width=width // 2))
    return parts


def _lanes(nodes: Sequence[Sequence[StageUse]], width: int, most: int) -> RenderableType:
    """Of the first `most` stages; what others were idle in the mean."""
    table = Table.grid(padding=(0, 1))
    stages = [(f"node {node} stage {stage}", use) for node, of in enumerate(nodes) for stage, use in enumerate(of)]
    long = max(len(name) for name, _ in stages)
    columns = max(10, width - long - len(" idle 100%") - 2 - (len("  100%") * len(KINDS) if width >= WIDE else 0))
    for name, use in stages[:most]:
        cells = [Text(name), lane(use, columns)]
        if width >= WIDE:
            cells += [Text(_share(getattr(use, kind)), style=style) for kind, _, style in KINDS]
        table.add_row(*cells, Text(f"idle {use.idle:4.0%}"))
    if rest := stages[most:]:
        idle = sum(use.idle for _, use in rest) / len(rest)
        table.add_row(Text("others"), Text(f"{len(rest)} more stages, idle {idle:.0%} in the mean"))
    return table


def lane(use: StageUse, columns: int) -> Text:
    """One stage's time as a bar: whole columns that come nearest to the shares, idle ones last."""
    drawn = Text()
    reached, share = 0, 0.0
    for kind, sign, style in KINDS:
        share += getattr(use, kind)
        until = min(columns, round(share * columns))
        drawn.append(sign * (until - reached), style)
        reached = until
    return drawn.append(IDLE * (columns - reached), "dim")


def _share(value: float) -> str:
    return f"{value:4.0%}" if value >= 0.005 else "   -"


def _legend() -> Text:
    legend = Text()
    for kind, sign, style in KINDS:
        legend.append(sign, style)
        legend.append(f" {'copies, saves' if kind == 'other' else kind}  ")
    return legend.append(f"{IDLE} idle, lately", "dim")


def _losses(losses: Sequence[float]) -> str:
    """A sparkline from the first to the last, and its range."""
    low, high = min(losses), max(losses)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    drawn = "".join(SPARKS[round((loss - low) * scale)] for loss in losses)
    return f"{drawn} {losses[0]:.3f} to {losses[-1]:.3f}"
