"""Colours and sizes of figures. The page's script gives text and lines the colour that suits a light or a dark page."""

from __future__ import annotations

from typing import Any

from bokeh.models import CustomJSTickFormatter, HoverTool, Legend, LegendItem, LogTicker, NumeralTickFormatter, Range1d
from bokeh.plotting import figure

HEIGHT = 280
WIDE = 165
"""Letters in a line of a legend of a figure as wide as the page."""

Entry = tuple[str, list[Any]]
"""Of a legend: its text, and what is drawn so."""


def plot(title: str, x: str, y: str, *, height: int = HEIGHT, hover: HoverTool | None = None, **options: Any) -> figure:
    """An empty figure as wide as the page lets it be. Ctrl and the wheel zoom, so that the wheel alone scrolls the page."""
    drawn = figure(
        title=title,
        x_axis_label=x,
        y_axis_label=y,
        height=height,
        sizing_mode="stretch_width",
        tools="xpan,xwheel_zoom,box_zoom,reset,save",
        active_drag="xpan",
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        **options,
    )
    drawn.toolbar.autohide = True
    drawn.toolbar.logo = None
    if hover is not None:
        drawn.add_tools(hover)
    return drawn


def time_range(end: float) -> Range1d:
    """Of the time axes of all figures, so that they are moved together; people cannot lose what there is to see."""
    margin = 0.01 * end or 1.0
    return Range1d(-margin, end + margin, bounds=(-margin, end + margin))


def legend(drawn: figure, entries: list[Entry], letters: int = 70) -> None:
    """Above the figure, with so many letters in a line; a click on an entry hides what it stands for."""
    items = [LegendItem(label=label, renderers=renderers) for label, renderers in entries]
    longest = 6 + max(len(label) for label, _ in entries)
    above = Legend(
        items=items,
        orientation="horizontal",
        ncols=min(len(items), max(1, letters // longest)),
        click_policy="hide",
        border_line_color=None,
        background_fill_color=None,
        margin=0,
        padding=4,
        spacing=4,
    )
    drawn.add_layout(above, "above")


def names(drawn: figure, entries: list[Entry]) -> figure:
    """With a legend where there are several runs."""
    if len(entries) > 1:
        legend(drawn, entries)
    return drawn


def percent_axis(drawn: figure) -> None:
    """Of shares from 0 to 1."""
    drawn.yaxis.formatter = CustomJSTickFormatter(code="return `${+(100 * tick).toFixed(1)} %`")


def log_axis(axis: Any) -> None:
    """Ticks in plain numbers."""
    axis.ticker = LogTicker(mantissas=[1, 2, 5], desired_num_ticks=4)
    axis.formatter = NumeralTickFormatter(format="0,0.[000]")
