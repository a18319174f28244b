"""Figures on requests; each takes runs by their names, so that they can be compared."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from bokeh.models import ColumnDataSource, FactorRange, HoverTool, LinearColorMapper, Range1d
from bokeh.plotting import figure

from lemix_hpc.report.aggregates.schema import LATENCIES, Curve, Latency, Load, Placement
from lemix_hpc.report.aggregates.views import LIMIT, TITLES, Runs, labelled, limit_told, limits, run_color
from lemix_hpc.report.html.lines import over_cells, stepwise
from lemix_hpc.report.html.style import WIDE, Entry, legend, log_axis, names, percent_axis, plot


def distributions(runs: Runs) -> Iterator[figure]:
    """Of each latency: which share of the requests took at most how long, with the limits. Batch requests are dashed."""
    for latency in LATENCIES:
        entries: list[Entry] = []
        tips = [("", "$name"), ("share", "@y{0.0 %}"), ("at most", "@x{0,0.0} ms")]
        drawn = plot(TITLES[latency], "ms", "", x_axis_type="log", hover=HoverTool(tooltips=tips), y_range=(0.0, 1.02))
        for number, (name, run) in enumerate(runs.items()):
            for service, curves in run.curves.items():
                if latency in curves:
                    label = labelled(runs, name, "" if len(run.curves) == 1 else service)
                    entries.append((label, [_curve(drawn, curves[latency], number, label, service == "batch")]))
        if not entries:
            continue
        percent_axis(drawn)
        log_axis(drawn.xaxis)
        for limit in limits(runs, latency):
            drawn.line([limit, limit], [0.0, 1.0], line_color=LIMIT, line_dash="dotted", line_width=2)
        yield names(drawn, entries)


def _curve(drawn: figure, curve: Curve, number: int, label: str, dashed: bool) -> object:
    data = {"x": np.maximum(curve.values, 1e-3).astype(np.float32), "y": curve.shares.astype(np.float32)}
    return drawn.line(
        "x",
        "y",
        source=ColumnDataSource(data),
        color=run_color(number),
        line_width=2,
        line_dash="dashed" if dashed else "solid",
        name=label,
    )


def over_time(runs: Runs, time: Range1d) -> Iterator[figure]:
    """Rate, queue, attainment and latencies."""
    loads = [(name, number, run.load) for number, (name, run) in enumerate(runs.items()) if run.load is not None]
    if not loads:
        return
    rate = plot("Requests per second: arrived (dotted) and finished", "seconds of the run", "", x_range=time)
    entries: list[Entry] = []
    for name, number, load in loads:
        arrived = stepwise(rate, load.edges, load.arrived, number, dash="dotted")
        finished = stepwise(rate, load.edges, load.finished, number)
        entries.append((name, [arrived, finished]))
    yield names(rate, entries)
    waiting = plot("Requests that have arrived and not ended", "seconds of the run", "", x_range=time)
    yield names(waiting, [(name, [stepwise(waiting, load.edges, load.waiting, n)]) for name, n, load in loads])
    met = plot(
        f"Attainment by arrival: {limit_told(runs)}", "seconds of the run", "", x_range=time, y_range=(-0.02, 1.05)
    )
    percent_axis(met)
    yield names(met, [(name, [over_cells(met, load.edges, load.attainment, n)]) for name, n, load in loads])
    for latency in LATENCIES:
        measured = [each for each in loads if latency in each[2].latencies]
        if measured:
            yield _percentiles(runs, latency, measured, time)


def _percentiles(runs: Runs, latency: Latency, loads: list[tuple[str, int, Load]], time: Range1d) -> figure:
    title = f"{TITLES[latency]} by arrival, ms: median and 99 % (dotted)"
    drawn = plot(title, "seconds of the run", "", x_range=time, y_axis_type="log")
    entries: list[Entry] = []
    for name, number, load in loads:
        found = load.latencies[latency]
        median = over_cells(drawn, load.edges, found.p50, number)
        tail = over_cells(drawn, load.edges, found.p99, number, dash="dotted")
        entries.append((name, [median, tail]))
    end = max(float(load.edges[-1]) for _, _, load in loads)
    for limit in limits(runs, latency):
        drawn.line([0.0, end], [limit, limit], line_color=LIMIT, line_dash="dotted", line_width=2)
    log_axis(drawn.yaxis)
    return names(drawn, entries)


def forecasts(runs: Runs) -> figure | None:
    """Measured against predicted responses of single requests; None if nothing was predicted."""
    found = [(name, number, run.forecasts) for number, (name, run) in enumerate(runs.items()) if run.forecasts]
    if not found:
        return None
    tips = [("", "$name"), ("predicted", "@x{0,0} ms"), ("measured", "@y{0,0} ms")]
    axes = {"x_axis_type": "log", "y_axis_type": "log"}
    drawn = plot(
        "", "predicted response, ms", "measured response, ms", height=380, hover=HoverTool(tooltips=tips), **axes
    )
    log_axis(drawn.axis)
    entries: list[Entry] = []
    for name, number, each in found:
        shown = slice(None, None, len(found))
        data = {"x": each.predicted[shown].astype(np.float32), "y": each.measured[shown].astype(np.float32)}
        look = {"size": 5, "color": run_color(number), "fill_alpha": 0.5, "line_color": None}
        entries.append((name, [drawn.scatter("x", "y", source=ColumnDataSource(data), name=name, **look)]))
    ends = [min(float(e.measured.min()) for _, _, e in found), max(float(e.measured.max()) for _, _, e in found)]
    diagonal = drawn.line(ends, ends, line_dash="dotted", line_width=2, color=LIMIT)
    legend(drawn, [*(entries if len(entries) > 1 else []), ("as predicted", [diagonal])], WIDE)
    return drawn


def placement(found: Placement, name: str) -> figure | None:
    """How many requests of each length went to each node; None if none was placed."""
    if not found.requests.size or not found.requests.sum():
        return None
    nodes = [f"node {node}" for node in range(len(found.requests))]
    lengths = [f"≤ {length}" for length in found.lengths]
    data = {
        "node": [node for node in nodes for _ in lengths],
        "length": lengths * len(nodes),
        "requests": found.requests.astype(int).ravel().tolist(),
    }
    tips = [("", "@node"), ("tokens of the prompt", "@length"), ("requests", "@requests")]
    drawn = plot(
        name,
        "tokens of the prompt",
        "",
        height=max(180, 90 + 26 * len(nodes)),
        hover=HoverTool(tooltips=tips),
        x_range=FactorRange(factors=lengths),
        y_range=FactorRange(factors=nodes[::-1]),
    )
    # From clear to half blue, so that figures can be read on it on either page.
    blues = [f"#0072b2{round(255 * 0.55 * step / 63):02x}" for step in range(64)]
    mapper = LinearColorMapper(palette=blues, low=0, high=float(found.requests.max()))
    fill = {"field": "requests", "transform": mapper}
    source = ColumnDataSource(data)
    drawn.rect("length", "node", 0.96, 0.9, source=source, fill_color=fill, line_color=None)
    look = {"text_align": "center", "text_baseline": "middle", "text_font_size": "11px"}
    drawn.text("length", "node", "requests", source=source, **look)
    drawn.grid.visible = False
    return drawn
