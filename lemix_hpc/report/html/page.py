"""A report that people look at: one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources

from bokeh.document import Document
from bokeh.embed import components
from bokeh.plotting import figure
from bokeh.resources import Resources
from jinja2 import Environment, StrictUndefined

from lemix_hpc import __version__
from lemix_hpc.report.aggregates.schema import RunAggregates
from lemix_hpc.report.aggregates.views import run_color
from lemix_hpc.report.html import bars, requests
from lemix_hpc.report.html.comparison import compared
from lemix_hpc.report.html.gantt import gantt
from lemix_hpc.report.html.style import time_range
from lemix_hpc.report.html.training import training
from lemix_hpc.report.shown_run import ShownRun


@dataclass(frozen=True)
class _Section:
    """Figures under a heading, each with a text above it; several in a row where they are small."""

    id: str
    title: str
    text: str
    figures: list[tuple[str, figure]]
    side_by_side: bool = False


def render_page(runs: Sequence[ShownRun]) -> str:
    """The whole page. Runs have different names."""
    sections = [section for section in _sections(runs) if section.figures]
    drawn = {f"{section.id}-{place}": each for section in sections for place, (_, each) in enumerate(section.figures)}
    script, boxes = _embedded(drawn)
    # Not Bokeh's widgets, tables, WebGL and mathematics: no figure has them.
    library = Resources(mode="inline", components=["bokeh"]).render_js()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_file("page.html")).render(
        title="lemix report: " + ", ".join(run.name for run in runs),
        runs=[(run, run_color(number)) for number, run in enumerate(runs)],
        rows=compared([run.report for run in runs]),
        warnings=[(run.name, warning) for run in runs for warning in _warnings(run)],
        sections=sections,
        boxes=boxes,
        count=len(drawn),
        version=__version__,
        style=_file("page.css"),
        library=library,
        figures=script,
        script=_file("page.js"),
    )


def _embedded(drawn: dict[str, figure]) -> tuple[str, dict[str, str]]:
    """The script with all figures and their data, and the element that each is shown in."""
    if not drawn:
        return "", {}
    document = Document()
    # Each time that one is added, Bokeh would look through all others, too.
    with document.models.freeze():
        for each in drawn.values():
            document.add_root(each)
    script, boxes = components(drawn)
    return script, boxes


def _sections(runs: Sequence[ShownRun]) -> Iterator[_Section]:
    by_name = {run.name: run.aggregates for run in runs}
    time = time_range(max(_end(run.aggregates) for run in runs))
    for run in runs:
        if run.aggregates.lanes is not None:
            text = "Drag to move, hold Ctrl and turn the wheel to zoom; a click on an entry of the legend hides it."
            text += " One second in ten was written down." if run.aggregates.spans == "sampled" else ""
            left_out = run.aggregates.lanes.left_out
            text += f" {left_out} more stages are not shown." if left_out else ""
            title = "Stages" if len(runs) == 1 else f"Stages of {run.name}"
            yield _Section(f"stages-{runs.index(run)}", title, text, gantt(run.aggregates.lanes, time, len(runs)))
    yield _Section("stage-time", "Stage time", "What each stage spent its time on.", _one(bars.stage_time(by_name)))
    yield _Section(
        "latencies",
        "Latencies",
        "The share of finished requests that took at most so long. Red dotted lines are the limits.",
        [("", each) for each in requests.distributions(by_name)],
        side_by_side=True,
    )
    yield _Section(
        "over-time",
        "Load and latencies over time",
        "Percentiles are within 1.1 %. Attainment counts requests that did not finish as misses.",
        [("", each) for each in requests.over_time(by_name, time)],
        side_by_side=True,
    )
    yield _Section(
        "waits",
        "Where requests waited",
        "What the responses of interactive requests consist of: until they were placed on a node; in its queue until their "
        "first pass; passes of the prompt, and waits between these; passes for further tokens, and waits between these, "
        "such as for their pace.",
        _one(bars.waits(by_name)),
    )
    yield _Section("forecasts", "Forecasts", _forecast_text(runs), _one(requests.forecasts(by_name)))
    yield _Section(
        "training",
        "Training",
        "",
        [("", each) for each in training(by_name, time)],
        side_by_side=True,
    )
    yield _Section(
        "memory",
        "Memory",
        "The largest use of each stage over the run. Kinds peak at different times.",
        _one(bars.memory(by_name)),
    )
    placed = [requests.placement(run.aggregates.placement, run.name if len(runs) > 1 else "") for run in runs]
    yield _Section(
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


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
