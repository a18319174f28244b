"""Pictures of several pairs of axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

Panel = tuple[str, Callable[["Axes"], None]]
"""A title, and what draws under it."""


def plain(axis: Axis) -> None:
    """A logarithmic axis with plain numbers."""
    low, high = axis.get_data_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.12g}"))
    axis.set_minor_formatter(NullFormatter())


def panels_of(panels: Sequence[Panel], x: str = "", height: float = 3.2) -> Figure | None:
    """Two in a row; None without any. Several lines have a legend."""
    if not panels:
        return None
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(12.0, height * rows))
    figure.set_layout_engine("constrained")
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, draw) in zip(places, panels, strict=False):
        axes.set_title(title, loc="left", fontsize="medium")
        axes.set_xlabel(x)
        axes.grid(axis="both", color="#dddddd", lw=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        handles, labels = axes.get_legend_handles_labels()
        if len(labels) > 1 and len(panels) > 1:
            axes.legend(fontsize="small", frameon=False, loc="best")
        elif len(labels) > 1:
            figure.legend(handles, labels, loc="outside upper right", ncols=6, frameon=False, fontsize="small")
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    return figure
