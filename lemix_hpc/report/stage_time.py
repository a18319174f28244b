"""How the stages spent their time, from their work in the order of its starts.

Times are in seconds since the start of the run. None: undefined.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lemix_hpc.records.schema import Stretch
from lemix_hpc.report.recent import Recent

TRAINING_KINDS = frozenset({"forward", "backward", "step"})
Interval = tuple[float, float]


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

    def times(self, weight: float) -> StageTime:
        """The same if each second of work stands for `weight` of them."""
        busy, training = (
            {place: weight * seconds for place, seconds in each.items()} for each in (self.busy, self.training)
        )
        return replace(self, busy=busy, training=training)


class StageTimes:
    """Sums up work that comes in the order of its starts. A stage runs one thing at a time, so the time in at least one of its
    stretches is its busy time. Saves do not count: they are no part of the work."""

    def __init__(self) -> None:
        self._windows: dict[int, Interval] = {}
        self._busy = _Covered()
        self._training = _Covered()
        self.training_window: Interval | None = None
        """First start and last end of training work."""
        self.last_version: int | None = None
        """The newest weight version that any work used."""

    def add(self, stretch: Stretch) -> None:
        """The next work."""
        if self.last_version is None or stretch.version > self.last_version:
            self.last_version = stretch.version
        if stretch.kind == "save":
            return
        place, interval = (stretch.node, stretch.stage), (stretch.start, stretch.end)
        self._windows[stretch.node] = _extent(self._windows.get(stretch.node), interval)
        self._busy.add(place, interval)
        if stretch.kind in TRAINING_KINDS:
            self._training.add(place, interval)
            self.training_window = _extent(self.training_window, interval)

    def so_far(self) -> StageTime:
        """Of all work that was added."""
        window = None
        for interval in self._windows.values():
            window = _extent(window, interval)
        spans = {node: end - start for node, (start, end) in self._windows.items()}
        return StageTime(window, spans, dict(self._busy.seconds), dict(self._training.seconds))


class _Covered:
    """Time of each place in at least one of its intervals, which come in the order of their starts."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[int, int], float] = {}
        self._until: dict[tuple[int, int], float] = {}

    def add(self, place: tuple[int, int], interval: Interval) -> None:
        start, end = interval
        until = self._until.get(place, -math.inf)
        part = end - max(start, until)
        # Without zeros and less, how often an interval is given does not change how the sum is rounded.
        self.seconds[place] = self.seconds.get(place, 0.0) + (part if part > 0.0 else 0.0)
        self._until[place] = max(until, end)


def _extent(one: Interval | None, other: Interval) -> Interval:
    """From the first start to the last end."""
    return other if one is None else (min(one[0], other[0]), max(one[1], other[1]))


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


class ServingBatches:
    """`mean_size`: requests per serving batch. `mixed`: batches that saw different weight versions on their stages."""

    def __init__(self) -> None:
        self._recent: Recent[tuple[int, int], tuple[int, bool]] = Recent()
        self._count = 0
        self._requests = 0
        self.mixed = 0

    def add(self, stretch: Stretch) -> None:
        """The next work in the order of starts."""
        if stretch.kind != "serve":
            return
        batch = stretch.node, stretch.batch
        if batch not in self._recent:
            self._count += 1
            self._requests += len(stretch.members)
            self._recent[batch] = stretch.version, False
            return
        version, mixed = self._recent[batch]
        if version != stretch.version and not mixed:
            self.mixed += 1
            self._recent[batch] = version, True

    @property
    def mean_size(self) -> float | None:
        return self._requests / self._count if self._count else None
