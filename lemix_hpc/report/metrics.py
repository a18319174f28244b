"""The metrics of a run as pure functions of its records.

Times are in seconds since the start of the run, results in the unit that each docstring gives. None: undefined.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lemix_hpc.records.schema import ServedTask, Span, TrainedTask

TRAINING_KINDS = frozenset({"forward", "backward", "step"})
Interval = tuple[float, float]


# Requests


def response(task: ServedTask) -> float | None:
    """finished - arrival, seconds; None unless the request finished."""
    if task.outcome != "finished" or task.finished is None:
        return None
    return task.finished - task.arrival


def time_to_first_token(task: ServedTask) -> float | None:
    """first_token - arrival, seconds; None unless the request finished with a first token."""
    if task.outcome != "finished" or task.first_token is None:
        return None
    return task.first_token - task.arrival


def time_per_output_token(task: ServedTask) -> float | None:
    """(response - TTFT) / (n - 1) for n output tokens of an answer, seconds; None for n <= 1."""
    end, first, tokens = response(task), time_to_first_token(task), task.answer_tokens
    if end is None or first is None or tokens <= 1:
        return None
    return (end - first) / (tokens - 1)


def attainment(served: Sequence[ServedTask], limit_s: float) -> float | None:
    """Requests with response <= limit / ALL requests received, 0..1: rejected, lost and aborted ones count as misses."""
    if not served:
        return None
    responses = [response(task) for task in served]
    return sum(seconds is not None and seconds <= limit_s for seconds in responses) / len(served)


def attainments(served: Sequence[ServedTask], limits_ms: Mapping[str, float]) -> dict[str, float | None]:
    """Requests within a limit / ALL requests received, 0..1, for each limit in ms (`ttft`, `tpot`, `response`), and with more
    than one limit for `all` of them at once. A finished request without a TPOT (one token) meets that limit."""
    if not served:
        return dict.fromkeys(limits_ms)
    measures = {"ttft": time_to_first_token, "tpot": time_per_output_token, "response": response}

    def meets(task: ServedTask, name: str) -> bool:
        seconds = measures[name](task)
        if seconds is None:
            return name == "tpot" and task.outcome == "finished"
        return 1e3 * seconds <= limits_ms[name]

    shares: dict[str, float | None] = {
        name: sum(meets(task, name) for task in served) / len(served) for name in limits_ms
    }
    if len(limits_ms) > 1:
        shares["all"] = sum(all(meets(task, name) for name in limits_ms) for task in served) / len(served)
    return shares


def served_tokens_per_second(served: Iterable[ServedTask]) -> float | None:
    """Tokens that finished requests were given, of scored prompts their own / (last finish - first arrival), per second."""
    finished = [task for task in served if task.outcome == "finished" and task.finished is not None]
    if not finished:
        return None
    seconds = max(task.finished or 0.0 for task in finished) - min(task.arrival for task in finished)
    return served_tokens(finished) / seconds if seconds > 0 else None


def served_tokens(served: Iterable[ServedTask]) -> int:
    """Tokens that finished requests were given, of scored prompts their own."""
    finished = (task for task in served if task.outcome == "finished")
    return sum(task.scored_tokens or len(task.output) or task.prompt_tokens for task in finished)


def mean_nll(served: Iterable[ServedTask]) -> float | None:
    """sum(nll) / sum(scored tokens) over finished prompts, nats per token."""
    scored = [(task.nll, task.scored_tokens) for task in served if task.outcome == "finished" and task.nll is not None]
    tokens = sum(count for _, count in scored)
    return sum(nll for nll, _ in scored) / tokens if tokens else None


def forecast_errors(served: Iterable[ServedTask], t0_s: float) -> list[float]:
    """|predicted - real response| / T0 of each finished request with a prediction, by arrival, in units of T0."""
    if t0_s <= 0:
        return []
    ordered = sorted(served, key=lambda task: task.arrival)
    pairs = [(task.predicted_response_s, response(task)) for task in ordered]
    return [abs(predicted - real) / t0_s for predicted, real in pairs if predicted is not None and real is not None]


def token_forecast_errors(served: Iterable[ServedTask]) -> tuple[list[float], list[float]]:
    """|predicted - real| time to the first token, and per further token, of each finished request with these forecasts, s."""
    first, each = [], []
    for task in served:
        ttft, tpot = time_to_first_token(task), time_per_output_token(task)
        if ttft is not None and task.predicted_ttft_s is not None:
            first.append(abs(task.predicted_ttft_s - ttft))
        if tpot is not None and task.predicted_tpot_s is not None:
            each.append(abs(task.predicted_tpot_s - tpot))
    return first, each


def tenths(values: Sequence[float]) -> list[float]:
    """Means of ten parts of the values, in their order and as equal as can be; fewer parts of fewer values."""
    count = min(10, len(values))
    return [float(np.mean(part)) for part in np.array_split(np.array(values), count)] if count else []


def distribution(
    values: Iterable[float | None], percentiles: Sequence[int], scale: float = 1.0
) -> dict[str, float | None]:
    """Mean and percentiles (linear interpolation) of the defined values, times `scale`; all None if there are none."""
    defined = np.array([value for value in values if value is not None]) * scale
    names = ["mean", *(f"p{q}" for q in percentiles)]
    if not defined.size:
        return dict.fromkeys(names)
    figures = [defined.mean(), *np.percentile(defined, percentiles)]
    return {name: float(figure) for name, figure in zip(names, figures, strict=True)}


# Stage time


@dataclass(frozen=True)
class StageTime:
    """How the stages spent their time, seconds.

    `window`: first start and last end of the run, None if nothing ran. `node_spans`: (last end - first start) of every
    node that was started. `busy`, `training`: time of each (node, stage) with any work, and with training work.
    """

    window: Interval | None
    node_spans: dict[int, float]
    busy: dict[tuple[int, int], float]
    training: dict[tuple[int, int], float]

    @property
    def makespan(self) -> float:
        """last end - first start over all spans of the run, seconds."""
        return self.window[1] - self.window[0] if self.window else 0.0


def stage_time(spans: Sequence[Span]) -> StageTime:
    """Sum up spans; the k spans of a batch of k requests count once. Saves do not count: they are no part of the work."""
    spans = [span for span in spans if span.kind != "save"]
    count = len(spans)
    nodes, stages = (
        np.fromiter((getattr(span, name) for span in spans), np.int64, count) for name in ("node", "stage")
    )
    starts, ends = (
        np.fromiter((getattr(span, name) for span in spans), np.float64, count) for name in ("start", "end")
    )
    trains = np.fromiter((span.kind in TRAINING_KINDS for span in spans), np.bool_, count)
    busy: dict[tuple[int, int], float] = {}
    training: dict[tuple[int, int], float] = {}
    windows: dict[int, Interval] = {}
    order = np.lexsort((ends, starts, stages, nodes))
    changes = np.flatnonzero(np.diff(nodes[order]) | np.diff(stages[order])) + 1
    for of_place in np.split(order, changes) if count else ():
        place = int(nodes[of_place[0]]), int(stages[of_place[0]])
        start, end = windows.get(place[0], (np.inf, -np.inf))
        windows[place[0]] = float(min(start, starts[of_place[0]])), float(max(end, ends[of_place].max()))
        busy[place] = covered(starts[of_place], ends[of_place])
        of_training = of_place[trains[of_place]]
        if of_training.size:
            training[place] = covered(starts[of_training], ends[of_training])
    return StageTime(
        window=extent(windows.values()) if windows else None,
        node_spans={node: end - start for node, (start, end) in windows.items()},
        busy=busy,
        training=training,
    )


def extent(intervals: Iterable[Interval]) -> Interval:
    """The first start and the last end of at least one interval."""
    starts, ends = zip(*intervals, strict=True)
    return min(starts), max(ends)


def covered(starts: NDArray[np.float64], ends: NDArray[np.float64]) -> float:
    """Time in at least one of the intervals, which are in order of their starts, seconds.

    A stage runs one thing at a time, so this is its busy time.
    """
    until = np.maximum.accumulate(np.concatenate([[-np.inf], ends[:-1]]))
    parts = ends - np.maximum(starts, until)
    # Without zeros among them, how often an interval is given does not change how the sum is rounded.
    return float(parts[parts > 0.0].sum())


def bubble_rate(time: StageTime, stages: int) -> float | None:
    """sum over nodes and stages of (span - busy) / sum over nodes and stages of span, 0..1.

    A node's span is its last end - first start; nodes that were never started do not count.
    """
    available = stages * sum(time.node_spans.values())
    # Rounding of many short spans must not make the rate negative.
    return max(0.0, available - sum(time.busy.values())) / available if available > 0 else None


def training_share(time: StageTime, nodes: int, stages: int) -> float | None:
    """Time of all stages in forwards, backwards and steps / (nodes x stages x makespan), 0..1."""
    available = nodes * stages * time.makespan
    return sum(time.training.values()) / available if available > 0 else None


def per_makespan(finished: int, time: StageTime) -> float | None:
    """Finished requests and micro-batches / makespan, tasks per second."""
    return finished / time.makespan if time.makespan > 0 else None


def per_active_node(finished: int, time: StageTime) -> float | None:
    """Finished requests and micro-batches / sum over nodes of (last end - first start), tasks per node-second."""
    total = sum(time.node_spans.values())
    return finished / total if total > 0 else None


# Training


def tokens_per_second(trained: Iterable[TrainedTask], spans: Iterable[Span]) -> float | None:
    """Tokens of finished micro-batches / (last end - first start of training work), tokens per second."""
    training = [span for span in spans if span.kind in TRAINING_KINDS]
    if not training:
        return None
    start, end = min(span.start for span in training), max(span.end for span in training)
    tokens = sum(task.tokens for task in trained if task.outcome == "finished")
    return tokens / (end - start) if end > start else None


def first_and_last_loss(trained: Iterable[TrainedTask]) -> tuple[float | None, float | None]:
    """Mean loss (nats per token) of the first and of the last tenth, at least one, of micro-batches in order of finish.

    None where one of them has no loss, as when it was not a number: leaving it out would hide that.
    """
    finished = [
        (task.finished, task.loss) for task in trained if task.outcome == "finished" and task.finished is not None
    ]
    losses = [loss for _, loss in sorted(finished, key=lambda pair: pair[0])]
    tenth = max(1, len(losses) // 10)
    return _mean(losses[:tenth]), _mean(losses[-tenth:])


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined and len(defined) == len(values) else None


def holds(trained: Iterable[TrainedTask]) -> list[float]:
    """placed - eligible of each released micro-batch, seconds."""
    return [task.placed - task.eligible for task in trained if task.placed is not None]


# Batches and weights


@dataclass(frozen=True)
class ServingBatches:
    """`mean_size`: requests per serving batch. `mixed`: batches that saw different weight versions on their stages."""

    mean_size: float | None
    mixed: int


def serving_batches(spans: Iterable[Span]) -> ServingBatches:
    """Distinct requests and weight versions of each (node, batch)."""
    tasks: dict[tuple[int, int], set[str]] = defaultdict(set)
    versions: dict[tuple[int, int], set[int]] = defaultdict(set)
    for span in spans:
        if span.kind == "serve":
            tasks[span.node, span.batch].add(span.task)
            versions[span.node, span.batch].add(span.version)
    mean_size = sum(map(len, tasks.values())) / len(tasks) if tasks else None
    return ServingBatches(mean_size, sum(len(seen) > 1 for seen in versions.values()))
