"""A report that people look at: one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from bokeh.plotting import figure

from lemix_hpc.report.aggregates.schema import RunAggregates
from lemix_hpc.report.aggregates.views import run_color
from lemix_hpc.report.html import bars, requests
from lemix_hpc.report.html.comparison import compared
from lemix_hpc.report.html.document import Section, render
from lemix_hpc.report.html.gantt import gantt
from lemix_hpc.report.html.style import time_range
from lemix_hpc.report.html.training import training
from lemix_hpc.report.shown_run import ShownRun
from lemix_hpc.report.training_cost import TrainingCost


def render_page(runs: Sequence[ShownRun]) -> str:
    """The whole page. Runs have different names."""
    return render(
        "page.html",
        _sections(runs),
        title="lemix report: " + ", ".join(run.name for run in runs),
        runs=[(run, run_color(number)) for number, run in enumerate(runs)],
        rows=compared([run.report for run in runs]),
        warnings=[(run.name, warning) for run in runs for warning in _warnings(run)],
    )


def _sections(runs: Sequence[ShownRun]) -> Iterator[Section]:
    by_name = {run.name: run.aggregates for run in runs}
    time = time_range(max(_end(run.aggregates) for run in runs))
    for run in runs:
        if run.aggregates.lanes is not None:
            text = "Drag to move, hold Ctrl and turn the wheel to zoom; a click on an entry of the legend hides it."
            text += " One second in ten was written down." if run.aggregates.spans == "sampled" else ""
            left_out = run.aggregates.lanes.left_out
            text += f" {left_out} more stages are not shown." if left_out else ""
            title = "Stages" if len(runs) == 1 else f"Stages of {run.name}"
            yield Section(f"stages-{runs.index(run)}", title, text, gantt(run.aggregates.lanes, time, len(runs)))
    yield Section("stage-time", "Stage time", "What each stage spent its time on.", _one(bars.stage_time(by_name)))
    yield Section(
        "latencies",
        "Latencies",
        "The share of finished requests that took at most so long. Red dotted lines are the limits.",
        [("", each) for each in requests.distributions(by_name)],
        side_by_side=True,
    )
    yield Section(
        "over-time",
        "Load and latencies over time",
        "Percentiles are within 1.1 %. Attainment counts requests that did not finish as misses.",
        [("", each) for each in requests.over_time(by_name, time)],
        side_by_side=True,
    )
    yield Section(
        "waits",
        "Where requests waited",
        "What the responses of interactive requests consist of: until they were placed on a node; in its queue until their "
        "first pass; passes of the prompt, and waits between these; passes for further tokens, and waits between these, "
        "such as for their pace.",
        _one(bars.waits(by_name)),
    )
    yield Section("forecasts", "Forecasts", _forecast_text(runs), _one(requests.forecasts(by_name)))
    yield Section(
        "training",
        "Training",
        " ".join([*_held_out(runs), *_costs(runs)]),
        [("", each) for each in training(by_name, time)],
        side_by_side=True,
    )
    yield Section(
        "memory",
        "Memory",
        "The largest use of each stage over the run. Kinds peak at different times.",
        _one(bars.memory(by_name)),
    )
    placed = [requests.placement(run.aggregates.placement, run.name if len(runs) > 1 else "") for run in runs]
    yield Section(
        "placement",
        "Placement",
        "How many requests with prompts of which length went to which node.",
        [("", each) for each in placed if each is not None],
    )


def _one(drawn: figure | None) -> list[tuple[str, figure]]:
    return [] if drawn is None else [("", drawn)]


def _end(run: RunAggregates) -> float:
    """When the last thing happened [s]."""
    ends = [each.edges[-1] for each in (run.lanes, run.load, run.training) if each is not None]
    return float(max(ends, default=1.0))


def _forecast_text(runs: Sequence[ShownRun]) -> str:
    found = [run.aggregates.forecasts for run in runs if run.aggregates.forecasts is not None]
    every = len(found) * max((each.every for each in found), default=1)
    shown = f" One in {every} is shown, or more." if every > 1 else ""
    return f"Response of interactive requests as it was predicted when they were placed, and as it was.{shown}"


def _held_out(runs: Sequence[ShownRun]) -> Iterator[str]:
    """What the loss on them was."""
    for run in runs:
        if (found := run.report["training"].get("held_out")) is None:
            continue
        after = "" if found["after"] is None else f", {found['after']:.4f} after it"
        of = f" of {run.name}" if len(runs) > 1 else ""
        told = f"Loss{of} on {found['documents']} documents that are never trained on"
        yield f"{told}: {found['before']:.4f} nats per token before training{after}."


def _costs(runs: Sequence[ShownRun]) -> Iterator[str]:
    """What training has cost requests, where somebody has asked for that."""
    for run in runs:
        if (found := run.report.get("training_cost")) is not None:
            of = f" of {run.name}" if len(runs) > 1 else ""
            told = msgspec.convert(found, TrainingCost).words
            yield f"Training cost serving{of}: {told}; beside serve-only, both simulated with its arrivals and stage times."


def _warnings(run: ShownRun) -> Iterator[str]:
    """What should not be overlooked."""
    report = run.report
    if not report.get("complete", True):
        yield "not complete; this is what it has done so far"
    if report["weight_versions"]["mixed_batches"]:
        yield f"{report['weight_versions']['mixed_batches']} serving batches saw different weights"
    if report["training"].get("skipped_steps"):
        yield f"{report['training']['skipped_steps']} optimizer steps skipped, since their gradients were not finite"
    if report["malformed_lines"]:
        yield f"{report['malformed_lines']} input lines left out"
    for drift in report["drift"]:
        yield f"stage {drift['stage']} {drift['kind']} took {drift['ratio']:.3g} x the coefficients' time"
