"""Figures on training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from bokeh.models import ColumnDataSource, Range1d
from bokeh.plotting import figure

from lemix_hpc.report.aggregates.views import Runs, run_color
from lemix_hpc.report.html.lines import over_cells, stepwise
from lemix_hpc.report.html.style import Entry, names, plot


def training(runs: Runs, time: Range1d) -> Iterator[figure]:
    """Loss over time and by step, tokens per second, weight versions."""
    trained = [(name, number, run.training) for number, (name, run) in enumerate(runs.items()) if run.training]
    losses = [each for each in trained if np.isfinite(each[2].loss).any()]
    if losses:
        loss = plot("Loss of micro-batches, nats per token", "seconds of the run", "", x_range=time)
        yield names(loss, [(name, [over_cells(loss, each.edges, each.loss, n)]) for name, n, each in losses])
        by_step = plot("Loss by optimizer step, nats per token", "optimizer step of a node", "")
        lines: list[Entry] = [(name, [over_cells(by_step, each.steps, each.step_loss, n)]) for name, n, each in trained]
        yield names(by_step, lines)
    if trained:
        tokens = plot("Tokens trained per second", "seconds of the run", "", x_range=time)
        lines = [(name, [stepwise(tokens, each.edges, each.tokens_per_s, n)]) for name, n, each in trained]
        yield names(tokens, lines)
    versions = [(name, number, run.versions) for number, (name, run) in enumerate(runs.items()) if run.versions]
    if versions:
        drawn = plot("Weight version in use: optimizer steps so far", "seconds of the run", "", x_range=time)
        lines = []
        for name, number, found in versions:
            data = {"x": found.times.astype(np.float32), "y": found.versions.astype(np.float32)}
            look = {"color": run_color(number), "line_width": 2}
            lines.append((name, [drawn.step("x", "y", source=ColumnDataSource(data), mode="after", **look)]))
        yield names(drawn, lines)
