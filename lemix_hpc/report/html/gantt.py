"""What each stage did when: lanes with the share of each kind of work, and with single stretches of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, Range1d
from bokeh.plotting import figure

from lemix_hpc.report.aggregates.schema import WORK, Array, Bars, Lanes, Place, WorkKind
from lemix_hpc.report.aggregates.views import WORK_COLORS
from lemix_hpc.report.html.style import WIDE, legend, plot

MOST_BARS = 2500
MOST_PIECES = 20_000
_LANE, _BAR = 100, 80
"""Height of a lane, and of what is in it: whole numbers of 16 bits hold them all."""

Shares = Mapping[Place, Mapping[WorkKind, Array]]


def gantt(lanes: Lanes, time: Range1d, runs: int) -> list[tuple[str, figure]]:
    """One figure where all stretches of work are known, else the whole run and a moment of it. A page has so many `runs`."""
    places = sorted(lanes.shares)
    if lanes.bars_are_all and runs == 1:
        return [("", _bars(lanes.bars, places, time))]
    moment = _first(lanes.bars, MOST_BARS // (2 * runs))
    close = Range1d(float(moment.start.min()), float(moment.end.max())) if len(moment.what) else None
    figures = [("The whole run: how much of each moment a stage spent on what.", _cells(lanes, places, time, runs))]
    if close is not None:
        told = f"Piece by piece, from {close.start:.1f} s of the run on: gaps are bubbles."
        figures.append((told, _bars(moment, places, close)))
    return figures


def _cells(lanes: Lanes, places: list[Place], time: Range1d, runs: int) -> figure:
    width, shares = _coarse_enough(lanes, MOST_PIECES // runs)
    drawn = _lanes(places, time, HoverTool(tooltips=[("", "$name"), ("at", "@x{0,0.00} s"), ("share", "@share %")]))
    entries = []
    for kind in WORK:
        columns = [_pieces(shares[place], kind, row, width) for row, place in enumerate(places)]
        source = {name: np.concatenate([each[name] for each in columns]) for name in ("x", "top", "bottom", "share")}
        if source["x"].size:
            drawn_kind = drawn.vbar(
                "x", width, "top", "bottom", source=ColumnDataSource(source), color=WORK_COLORS[kind], name=kind
            )
            # Else there are hairlines between neighbours.
            drawn_kind.glyph.line_width = 0.6
            entries.append((str(kind), [drawn_kind]))
    legend(drawn, entries, WIDE)
    return drawn


def _coarse_enough(lanes: Lanes, most: int) -> tuple[float, Shares]:
    """Width of the cells [s], and shares of these, with no more than so many pieces."""
    width = float(lanes.edges[1] - lanes.edges[0])
    shares: Shares = lanes.shares
    while sum(int((share > 0).sum()) for of_place in shares.values() for share in of_place.values()) > most:
        width *= 2
        shares = {
            place: {kind: _halved(share) for kind, share in of_place.items()} for place, of_place in shares.items()
        }
    return width, shares


def _halved(share: Array) -> Array:
    pairs = np.append(share, np.zeros(share.size % 2)).reshape(-1, 2)
    halved: Array = (pairs[:, 0] + pairs[:, 1]) / 2
    return halved


def _pieces(shares: Mapping[WorkKind, Array], kind: WorkKind, row: int, width: float) -> dict[str, np.ndarray]:
    """What a kind of work fills of each cell of a lane, on top of the kinds before it."""
    nothing = np.zeros(next(iter(shares.values())).size)
    below = sum((shares.get(each, nothing) for each in WORK[: WORK.index(kind)]), nothing)
    mine = shares.get(kind, nothing)
    # Where streams of a device run side by side there may be more than one second of work in a second.
    scale = _BAR / np.maximum(1.0, sum((shares.get(each, nothing) for each in WORK), nothing))
    there = np.flatnonzero(mine > 0)
    base = _LANE * row + _BAR
    return {
        "x": (width * (there + 0.5)).astype(np.float32),
        "bottom": np.rint(base - scale * below)[there].astype(np.uint16),
        "top": np.rint(base - scale * (below + mine))[there].astype(np.uint16),
        "share": np.rint(100 * mine[there]).astype(np.uint8),
    }


def _bars(bars: Bars, places: list[Place], time: Range1d) -> figure:
    tips = [("", "$name @what"), ("from", "@start{0,0.000} s"), ("to", "@end{0,0.000} s"), ("weights", "@version")]
    drawn = _lanes(places, time, HoverTool(tooltips=tips))
    row_of = {place: row for row, place in enumerate(places)}
    rows = np.array([row_of[node, stage] for node, stage in zip(bars.node.tolist(), bars.stage.tolist(), strict=True)])
    entries = []
    for number, kind in enumerate(WORK):
        mine = np.flatnonzero(bars.kind == number)
        if mine.size:
            source = {
                "y": (_LANE * rows[mine] + _BAR // 2).astype(np.uint16),
                "start": bars.start[mine],
                "end": bars.end[mine],
                "version": bars.version[mine].astype(np.int32),
                "what": [bars.what[place] for place in mine],
            }
            drawn_kind = drawn.hbar(
                "y",
                _BAR,
                right="end",
                left="start",
                source=ColumnDataSource(source),
                color=WORK_COLORS[kind],
                name=kind,
            )
            drawn_kind.glyph.line_color = None
            entries.append((str(kind), [drawn_kind]))
    legend(drawn, entries, WIDE)
    return drawn


def _first(bars: Bars, most: int) -> Bars:
    first = slice(most)
    return Bars(
        node=bars.node[first],
        stage=bars.stage[first],
        kind=bars.kind[first],
        start=bars.start[first],
        end=bars.end[first],
        version=bars.version[first],
        what=bars.what[first],
    )


def _lanes(places: list[Place], time: Range1d, hover: HoverTool) -> figure:
    drawn = plot(
        "",
        "seconds of the run",
        "",
        height=110 + max(14, min(34, 900 // len(places))) * len(places),
        hover=hover,
        x_range=time,
    )
    drawn.y_range = Range1d(_LANE * len(places), _BAR - _LANE)
    middles = [_LANE * row + _BAR // 2 for row in range(len(places))]
    drawn.yaxis.ticker = FixedTicker(ticks=middles)
    labels = {middle: f"node {node} · stage {stage}" for middle, (node, stage) in zip(middles, places, strict=True)}
    drawn.yaxis.major_label_overrides = labels
    drawn.ygrid.visible = False
    return drawn
