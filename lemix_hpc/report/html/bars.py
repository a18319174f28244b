"""Figures of bars: what stages, responses and memory consist of."""

from __future__ import annotations

from collections.abc import Sequence

from bokeh.models import ColumnDataSource, FactorRange, HoverTool, Span
from bokeh.plotting import figure
from bokeh.transform import dodge

from lemix_hpc.report.aggregates.schema import WAITS, WORK
from lemix_hpc.report.aggregates.views import (
    LIMIT,
    MEMORY_COLORS,
    WAIT_COLORS,
    WORK_COLORS,
    Runs,
    memory_shares,
    stage_shares,
    wait_parts,
)
from lemix_hpc.report.html.style import WIDE, Entry, legend, plot


def stage_time(runs: Runs) -> figure | None:
    """Share of the run that each stage spent on each kind of work; None without work, or where only samples are known."""
    shares = stage_shares(runs)
    kinds = [kind for kind in WORK if any(kind in each for each in shares.values())]
    colors = [WORK_COLORS[kind] for kind in kinds]
    values = [[100 * each.get(kind, 0.0) for kind in kinds] for each in shares.values()]
    return _stacked(list(shares), values, kinds, colors, "% of the run")


def waits(runs: Runs) -> figure | None:
    """What responses consist of, in the mean; None where no work of requests is known."""
    parts = wait_parts(runs)
    return _stacked(list(parts), list(parts.values()), WAITS, WAIT_COLORS, "seconds of a response, mean")


def memory(runs: Runs) -> figure | None:
    """The most of each stage's memory that was in use, in all and by kind; None where it has no limit."""
    shares = memory_shares(runs)
    if not shares:
        return None
    rows = list(shares)
    drawn = _rows(rows, 60, "% of the stage's memory", [("", "@row, $name"), ("used", "@used{0.0} %")])
    entries: list[Entry] = []
    for place, (kind, color) in enumerate(MEMORY_COLORS.items()):
        source = ColumnDataSource({"row": rows, "used": [100 * each[kind] for each in shares.values()]})
        y = dodge("row", 0.3 - 0.2 * place, range=drawn.y_range)
        bar = drawn.hbar(y, 0.17, right="used", source=source, color=color, line_color=None, name=kind)
        entries.append((kind, [bar]))
    drawn.add_layout(Span(location=100, dimension="height", line_color=LIMIT, line_dash="dotted", line_width=2))
    legend(drawn, entries, WIDE)
    return drawn


def _stacked(
    rows: list[str], values: Sequence[Sequence[float]], parts: Sequence[str], colors: Sequence[str], x: str
) -> figure | None:
    """A bar for each row, with a value for each part of it; None without rows."""
    if not rows:
        return None
    columns = {part: [round(of_row[place], 5) for of_row in values] for place, part in enumerate(parts)}
    drawn = _rows(rows, 26, x, [("", "@row"), ("$name", "@$name")])
    source = ColumnDataSource({"row": rows, **columns})
    layers = drawn.hbar_stack(list(parts), y="row", height=0.75, color=list(colors), line_color=None, source=source)
    legend(drawn, [(part, [layer]) for part, layer in zip(parts, layers, strict=True)], WIDE)
    return drawn


def _rows(rows: list[str], height: int, x: str, tips: list[tuple[str, str]]) -> figure:
    ticks = FactorRange(factors=rows[::-1])
    drawn = plot("", x, "", height=110 + height * len(rows), hover=HoverTool(tooltips=tips), y_range=ticks)
    drawn.x_range.start = 0
    drawn.ygrid.visible = False
    return drawn
