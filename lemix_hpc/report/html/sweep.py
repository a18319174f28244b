"""A page of comparisons: a table, and lines over the load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bokeh.models import ColumnDataSource, HoverTool
from bokeh.plotting import figure

from lemix_hpc.report.aggregates.views import LIMIT, run_color
from lemix_hpc.report.html.document import Section, render
from lemix_hpc.report.html.style import Entry, names, percent_axis, plot
from lemix_hpc.report.sweep import AXES, Axis, Panel, Sweep, dash_of, figures_of, parts, table

Sweeps = Mapping[str, Sweep]
"""By their names."""


def render_sweeps(sweeps: Sweeps) -> str:
    """The whole page."""
    return render(
        "sweep.html",
        _sections(sweeps),
        title="lemix compare: " + ", ".join(sweeps),
        sweeps=[
            (name, sweep, [title for _, title, _ in figures_of(sweep)], table(sweep)) for name, sweep in sweeps.items()
        ],
    )


def _sections(sweeps: Sweeps) -> Iterator[Section]:
    for number, (name, sweep) in enumerate(sweeps.items()):
        for place, part in enumerate(parts(sweep)):
            title = " · ".join(
                text for text in (name if len(sweeps) > 1 else "", part.fixed or "Over the load") if text
            )
            text = "A click on an entry of a legend hides it. Where a figure has ratios, 1 is the baseline."
            drawn = [("", _lines(panel, part.axis)) for panel in part.panels]
            yield Section(f"sweep-{number}-{place}", title, text, drawn, side_by_side=True)


def _lines(panel: Panel, axis: Axis) -> figure:
    tips = [("", "$name"), (AXES[axis], "@x{0,0.[000]}"), ("", "@y{0.0 %}" if panel.is_share else "@y{0,0.[000]}")]
    drawn = plot(panel.title, AXES[axis], "", hover=HoverTool(tooltips=tips))
    entries: list[Entry] = []
    for line in panel.lines:
        source = ColumnDataSource({"x": line.xs, "y": line.ys})
        color = run_color(line.number)
        shape = drawn.line(
            "x", "y", source=source, name=line.policy, color=color, line_width=2, line_dash=dash_of(line)
        )
        dots = drawn.scatter("x", "y", source=source, name=line.policy, color=color, size=5)
        entries.append((line.policy, [shape, dots]))
    if panel.is_share:
        percent_axis(drawn)
    if panel.is_ratio:
        drawn.hspan(y=1.0, line_color=LIMIT, line_dash="dotted", line_width=2)
    return names(drawn, entries)
