"""Figures of requests, training and memory, as pictures; each takes runs by their names, and is None without data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lemix_hpc.report.aggregates.schema import LATENCIES, WAITS, WORK, Array, Latency
from lemix_hpc.report.aggregates.views import (
    LIMIT,
    MEMORY_COLORS,
    TITLES,
    WAIT_COLORS,
    WORK_COLORS,
    Runs,
    labelled,
    limit_told,
    limits,
    memory_shares,
    run_color,
    stage_shares,
    wait_parts,
)
from lemix_hpc.report.png.panels import Panel, panels_of, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def latencies(runs: Runs) -> Figure | None:
    """Which share of the requests took at most how long, with the limits; batch requests dashed."""
    has = [name for name in LATENCIES if any(name in curves for run in runs.values() for curves in run.curves.values())]
    return panels_of([(TITLES[name], partial(_distribution, runs=runs, latency=name)) for name in has])


def _distribution(axes: Axes, runs: Runs, latency: Latency) -> None:
    for number, (name, run) in enumerate(runs.items()):
        for service, curves in run.curves.items():
            if latency in curves:
                curve, dash = curves[latency], "-" if service == "interactive" else "--"
                label = labelled(runs, name, "" if len(run.curves) == 1 else service)
                axes.plot(np.maximum(curve.values, 1e-3), curve.shares, dash, color=run_color(number), label=label)
    for limit in limits(runs, latency):
        axes.axvline(limit, color=LIMIT, ls=":")
    axes.set(xscale="log", xlabel="ms", ylim=(0.0, 1.02))
    plain(axes.xaxis)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def over_time(runs: Runs) -> Figure | None:
    """Rate, queue, attainment, and medians and 99th percentiles of latencies."""
    loads = [(number, name, run.load) for number, (name, run) in enumerate(runs.items()) if run.load is not None]

    def rate(axes: Axes) -> None:
        for number, name, load in loads:
            axes.stairs(load.arrived, load.edges, color=run_color(number), ls=":")
            axes.stairs(load.finished, load.edges, color=run_color(number), label=name)

    def waiting(axes: Axes) -> None:
        for number, name, load in loads:
            axes.stairs(load.waiting, load.edges, color=run_color(number), label=name)

    def attainment(axes: Axes) -> None:
        for number, name, load in loads:
            _over_cells(axes, load.edges, load.attainment, run_color(number), label=name)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))

    def percentiles(axes: Axes, latency: Latency) -> None:
        for number, name, load in loads:
            if latency in load.latencies:
                found = load.latencies[latency]
                _over_cells(axes, load.edges, found.p50, run_color(number), label=name)
                _over_cells(axes, load.edges, found.p99, run_color(number), ls=":")
        for limit in limits(runs, latency):
            axes.axhline(limit, color=LIMIT, ls=":")
        axes.set(yscale="log")
        plain(axes.yaxis)

    has = [latency for latency in LATENCIES if any(latency in load.latencies for _, _, load in loads)]
    panels: list[Panel] = [
        ("Requests per second: arrived (dotted) and finished", rate),
        ("Requests that have arrived and not ended", waiting),
        (f"Attainment by arrival: {limit_told(runs)}" if loads else "", attainment),
    ]
    for each in has:
        title = f"{TITLES[each]} by arrival, ms: median and 99 % (dotted)"
        panels.append((title, partial(percentiles, latency=each)))
    return panels_of(panels if loads else [], "seconds of the run")


def training(runs: Runs) -> Figure | None:
    """Loss over time and by step, tokens per second, weight versions."""
    trained = [(number, name, run.training) for number, (name, run) in enumerate(runs.items()) if run.training]

    def loss(axes: Axes) -> None:
        for number, name, each in trained:
            _over_cells(axes, each.edges, each.loss, run_color(number), label=name)

    def step_loss(axes: Axes) -> None:
        for number, name, each in trained:
            _over_cells(axes, each.steps, each.step_loss, run_color(number), label=name)
        axes.set_xlabel("optimizer step of a node")

    def tokens(axes: Axes) -> None:
        for number, name, each in trained:
            axes.stairs(each.tokens_per_s, each.edges, color=run_color(number), label=name)

    def versions(axes: Axes) -> None:
        for number, (name, run) in enumerate(runs.items()):
            if run.versions is not None:
                axes.step(run.versions.times, run.versions.versions, where="post", color=run_color(number), label=name)

    panels: list[Panel] = []
    if any(np.isfinite(each.loss).any() for _, _, each in trained):
        panels += [
            ("Loss of micro-batches, nats per token", loss),
            ("Loss by optimizer step, nats per token", step_loss),
        ]
    panels += [("Tokens trained per second", tokens)] if trained else []
    if any(run.versions is not None for run in runs.values()):
        panels.append(("Weight version in use: optimizer steps so far", versions))
    return panels_of(panels, "seconds of the run")


def forecasts(runs: Runs) -> Figure | None:
    """Measured against predicted responses of single requests."""
    found = [(number, name, run.forecasts) for number, (name, run) in enumerate(runs.items()) if run.forecasts]

    def draw(axes: Axes) -> None:
        for number, name, each in found:
            axes.plot(each.predicted, each.measured, "o", ms=3, alpha=0.5, mew=0, color=run_color(number), label=name)
        ends = [min(each.measured.min() for *_, each in found), max(each.measured.max() for *_, each in found)]
        axes.plot(ends, ends, ":", color=LIMIT)
        axes.set(xscale="log", yscale="log", xlabel="predicted response, ms", ylabel="measured response, ms")
        plain(axes.xaxis)
        plain(axes.yaxis)

    return panels_of([("", draw)] if found else [])


def stage_time(runs: Runs) -> Figure | None:
    """Share of the run that each stage spent on each kind of work."""
    shares = stage_shares(runs)
    rows = {what: {str(kind): 100 * share for kind, share in each.items()} for what, each in shares.items()}
    return _stacked(rows, list(WORK), list(WORK_COLORS.values()), "% of the run")


def waits(runs: Runs) -> Figure | None:
    """What responses consist of."""
    rows = {what: dict(zip(WAITS, parts, strict=True)) for what, parts in wait_parts(runs).items()}
    return _stacked(rows, WAITS, WAIT_COLORS, "seconds of a response, mean")


def memory(runs: Runs) -> Figure | None:
    """The most of each stage's memory that was in use."""
    shares = memory_shares(runs)
    if not shares:
        return None

    def draw(axes: Axes) -> None:
        for place, (kind, color) in enumerate(MEMORY_COLORS.items()):
            rows = np.arange(len(shares)) - 0.3 + 0.2 * place
            axes.barh(rows, [100 * each[kind] for each in shares.values()], 0.17, color=color, label=kind)
        axes.axvline(100.0, color=LIMIT, ls=":")
        _rows(axes, list(shares), "% of the stage's memory")

    return panels_of([("", draw)], height=1.2 + 0.7 * len(shares))


def placement(runs: Runs) -> Figure | None:
    """How many requests of each length went to each node."""
    found = {name: run.placement for name, run in runs.items() if run.placement.requests.sum() > 0}
    if not found:
        return None
    figure = Figure(figsize=(12.0, sum(1.2 + 0.3 * len(each.requests) for each in found.values())))
    figure.set_layout_engine("constrained")
    for axes, (name, each) in zip(figure.subplots(len(found), 1, squeeze=False)[:, 0], found.items(), strict=True):
        axes.imshow(each.requests, cmap="Blues", aspect="auto", vmax=1.8 * each.requests.max())
        for (node, length), count in np.ndenumerate(each.requests):
            axes.text(length, node, f"{count:.0f}", ha="center", va="center", fontsize="small")
        axes.set_xticks(range(len(each.lengths)), [f"≤ {length}" for length in each.lengths])
        axes.set_yticks(range(len(each.requests)), [f"node {node}" for node in range(len(each.requests))])
        axes.set_xlabel("tokens of the prompt")
        axes.set_title(name if len(runs) > 1 else "", loc="left")
    return figure


def _stacked(
    rows: Mapping[str, Mapping[str, float]], parts: Sequence[str], colors: Sequence[str], x: str
) -> Figure | None:
    if not rows:
        return None

    def draw(axes: Axes) -> None:
        left = np.zeros(len(rows))
        for part, color in zip(parts, colors, strict=True):
            widths = np.array([each.get(part, 0.0) for each in rows.values()])
            if widths.any():
                axes.barh(range(len(rows)), widths, 0.75, left=left, color=color, label=part)
            left += widths
        _rows(axes, list(rows), x)

    return panels_of([("", draw)], height=1.4 + 0.3 * len(rows))


def _rows(axes: Axes, rows: list[str], x: str) -> None:
    axes.set_yticks(range(len(rows)), rows, fontsize="small")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(x)


def _over_cells(axes: Axes, edges: Array, values: Array, color: str, label: str | None = None, ls: str = "-") -> None:
    """A line through the middles of cells, over those without a value."""
    there = np.isfinite(values)
    axes.plot(((edges[1:] + edges[:-1]) / 2)[there], values[there], ls, color=color, label=label)
