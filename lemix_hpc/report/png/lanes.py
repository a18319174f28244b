"""What each stage did when, as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from lemix_hpc.report.aggregates.schema import WORK, Bars, Lanes, Place
from lemix_hpc.report.aggregates.views import WORK_COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def stages(lanes: Lanes, title: str) -> Figure:
    """The whole run, and unless that shows all, a moment of it piece by piece."""
    places = sorted(lanes.shares)
    panels = 1 if lanes.bars_are_all else 2
    figure = Figure(figsize=(12.0, panels * (1.2 + max(0.16, 0.45 - 0.005 * len(places)) * len(places))))
    figure.set_layout_engine("constrained")
    axes = figure.subplots(panels, 1, squeeze=False)[:, 0]
    if not lanes.bars_are_all:
        _cells(axes[0], lanes, places)
    _bars(axes[-1], lanes.bars, places)
    figure.suptitle(title)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(WORK), frameon=False, fontsize="small")
    return figure


def _cells(axes: Axes, lanes: Lanes, places: list[Place]) -> None:
    """How much of each moment a stage spent on what."""
    told: set[str] = set()
    for row, place in enumerate(places):
        shares = lanes.shares[place]
        # Where streams of a device run side by side there may be more than one second of work in a second.
        scale = 0.8 / np.maximum(1.0, sum(shares.values(), np.zeros(lanes.edges.size - 1)))
        base = np.full(lanes.edges.size - 1, row + 0.4)
        for kind in (kind for kind in WORK if kind in shares):
            top = base - scale * shares[kind]
            low, high = (np.append(line, line[-1:]) for line in (top, base))
            axes.fill_between(
                lanes.edges, low, high, step="post", color=WORK_COLORS[kind], lw=0, label=None if kind in told else kind
            )
            told.add(kind)
            base = top
    _of_lanes(axes, places)
    axes.set_xlim(0.0, float(lanes.edges[-1]))


def _bars(axes: Axes, bars: Bars, places: list[Place]) -> None:
    """Stretches of work one by one."""
    row_of = {place: row for row, place in enumerate(places)}
    rows = np.array([row_of[place] for place in zip(bars.node.tolist(), bars.stage.tolist(), strict=True)])
    for number, kind in enumerate(WORK):
        for row in np.unique(rows[bars.kind == number]):
            mine = (bars.kind == number) & (rows == row)
            pieces = list(zip(bars.start[mine], bars.end[mine] - bars.start[mine], strict=True))
            first = row == rows[bars.kind == number].min()
            axes.broken_barh(pieces, (row - 0.4, 0.8), color=WORK_COLORS[kind], lw=0, label=kind if first else None)
    _of_lanes(axes, places)
    if rows.size:
        axes.set_xlim(float(bars.start.min()), float(bars.end.max()))


def _of_lanes(axes: Axes, places: list[Place]) -> None:
    axes.set_yticks(range(len(places)), [f"node {node} · stage {stage}" for node, stage in places], fontsize="small")
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.set_xlabel("seconds of the run")
    axes.spines[["top", "right"]].set_visible(False)
