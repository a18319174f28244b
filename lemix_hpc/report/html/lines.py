"""Lines of runs over cells of time."""

from __future__ import annotations

import numpy as np
from bokeh.models import ColumnDataSource
from bokeh.plotting import figure

from lemix_hpc.report.aggregates.schema import Array
from lemix_hpc.report.aggregates.views import run_color


def stepwise(drawn: figure, edges: Array, values: Array, number: int, dash: str = "solid") -> object:
    """A value for each cell, of the run with this number."""
    data = {"x": edges.astype(np.float32), "y": np.append(values, values[-1:]).astype(np.float32)}
    look = {"color": run_color(number), "line_width": 2, "line_dash": dash}
    return drawn.step("x", "y", source=ColumnDataSource(data), mode="after", **look)


def over_cells(drawn: figure, edges: Array, values: Array, number: int, dash: str = "solid") -> object:
    """A line through the middles of cells, over those without a value."""
    there = np.isfinite(values)
    middles = ((edges[1:] + edges[:-1]) / 2)[there]
    data = {"x": middles.astype(np.float32), "y": values[there].astype(np.float32)}
    look = {"color": run_color(number), "line_width": 2, "line_dash": dash}
    return drawn.line("x", "y", source=ColumnDataSource(data), **look)
