"""What several figures of runs need alike, whatever they are drawn with."""

from __future__ import annotations

from collections.abc import Mapping

from lemix_hpc.report.aggregates.schema import WORK, Lanes, Latency, RunAggregates, WorkKind

Runs = Mapping[str, RunAggregates]
"""By their names."""
TITLES: dict[Latency, str] = {
    "ttft": "Time to first token",
    "tpot": "Time per output token",
    "response": "Response",
}
# Okabe and Ito's colours, which people who see few colours can tell apart, too.
WORK_COLORS: dict[WorkKind, str] = {
    "prefill": "#0072b2",
    "decode": "#56b4e9",
    "forward": "#e69f00",
    "backward": "#d55e00",
    "step": "#009e73",
    "copy": "#cc79a7",
    "save": "#999999",
}
WAIT_COLORS = ("#999999", "#cc79a7", "#0072b2", "#e69f00", "#56b4e9", "#d55e00")
MEMORY_COLORS = {"peak": "#888888", "resting": "#009e73", "activations": "#e69f00", "cache": "#56b4e9"}
LIMIT = "#d0483a"
RUN_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
MOST_ROWS = 40
"""Of stages; of more, all nodes are taken together."""


def run_color(number: int) -> str:
    """Of the lines of the run with this number."""
    return RUN_COLORS[number % len(RUN_COLORS)]


def labelled(runs: Runs, name: str, what: str) -> str:
    """What is shown, with the run's name where there are several."""
    if len(runs) == 1:
        return what or name
    return f"{name}: {what}" if what else name


def limits(runs: Runs, latency: Latency) -> list[float]:
    """In ms: those of the recipes, and of responses without one the multiples of T0."""
    found: set[float] = set()
    for run in runs.values():
        if latency in run.limits_ms:
            found.add(run.limits_ms[latency])
        elif latency == "response" and not run.limits_ms and run.t0_s > 0:
            found |= {1e3 * factor * run.t0_s for factor in run.slo_factors}
    return sorted(found)


def limit_told(runs: Runs) -> str:
    """What attainment is of."""
    told = {run.load.limit for run in runs.values() if run.load is not None}
    return told.pop() if len(told) == 1 else "within the limits of each run"


def stage_shares(runs: Runs) -> dict[str, Mapping[WorkKind, float]]:
    """The share of the run that each stage spent on each kind of work, by what it is called. Nothing where only samples of the
    work are known."""
    known = {name: run.lanes for name, run in runs.items() if run.lanes is not None and run.spans == "all"}
    each_node = sum(len(lanes.seconds) for lanes in known.values()) <= MOST_ROWS
    return {
        labelled(runs, name, what): share
        for name, lanes in known.items()
        for what, share in (_of_each(lanes) if each_node else _of_all_nodes(lanes)).items()
    }


def _of_each(lanes: Lanes) -> dict[str, Mapping[WorkKind, float]]:
    span = float(lanes.edges[-1])
    return {
        f"node {node} · stage {stage}": {kind: spent / span for kind, spent in seconds.items()}
        for (node, stage), seconds in lanes.seconds.items()
    }


def _of_all_nodes(lanes: Lanes) -> dict[str, Mapping[WorkKind, float]]:
    """Means of the same stage of all nodes."""
    found: dict[str, Mapping[WorkKind, float]] = {}
    for stage in sorted({stage for _, stage in lanes.seconds}):
        nodes = [seconds for (_, at), seconds in lanes.seconds.items() if at == stage]
        span = float(lanes.edges[-1]) * len(nodes)
        means = {kind: sum(each.get(kind, 0.0) for each in nodes) / span for kind in WORK}
        found[f"stage {stage}, mean of {len(nodes)} nodes"] = means
    return found


def wait_parts(runs: Runs) -> dict[str, tuple[float, ...]]:
    """Mean seconds of what responses consist of, by whose they are."""
    return {
        labelled(runs, name, f"{group} ({found.count})"): found.seconds
        for name, run in runs.items()
        for group, found in run.waits.items()
    }


def memory_shares(runs: Runs) -> dict[str, dict[str, float]]:
    """The most of each stage's memory that was in use, in all and by kind; nothing where it has no limit."""
    return {
        labelled(runs, name, f"stage {number}"): {kind: getattr(stage, kind) for kind in MEMORY_COLORS}
        for name, run in runs.items()
        if run.memory is not None
        for number, stage in enumerate(run.memory.stages)
    }
