"""Running figures of the live view, in bounded memory: what stages did in the last seconds, recent responses and losses."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lemix_hpc.records.schema import ServedTask, SpanKind, StageUse
from lemix_hpc.report import metrics

RECENT = 200
"""Requests that figures of responses go by; losses are averaged over a tenth of that."""
LATELY_S = 5.0
"""Shares and rates are of the last seconds, so many at least."""
CURVE_POINTS = 64
_COLUMN: dict[SpanKind, int] = {"serve": 0, "forward": 1, "backward": 2, "step": 3, "copy": 4, "save": 4}
"""Where a kind of work is counted in `StageUse`."""


class LossCurve:
    """The loss over all of training, as fewer than `CURVE_POINTS` means of equally many micro-batches."""

    def __init__(self) -> None:
        self.points: list[float] = []
        self._each = 1
        self._sum = 0.0
        self._count = 0

    def add(self, loss: float) -> None:
        """The next micro-batch's, finite. When there is no room for more means, neighbours become one."""
        self._sum += loss
        self._count += 1
        if self._count < self._each:
            return
        self.points.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self.points) == CURVE_POINTS:
            self.points = [(one + next_) / 2 for one, next_ in zip(self.points[::2], self.points[1::2], strict=True)]
            self._each *= 2


@dataclass(frozen=True, slots=True)
class Totals:
    """What had been done at a time [s]: seconds of work by node, stage and kind, requests finished and tokens trained."""

    time: float
    busy: NDArray[np.float64]
    served: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Lately:
    """The last seconds: shares of each stage's time by node and stage, requests and trained tokens per second."""

    stages: list[list[StageUse]]
    requests_per_s: float
    tokens_per_s: float


class LiveFigures:
    """Running figures. Responses are in seconds, losses in nats per token."""

    def __init__(self, nodes: int, stages: int) -> None:
        self._busy = [[[0.0] * len(StageUse.__struct_fields__) for _ in range(stages)] for _ in range(nodes)]
        self._looks: deque[Totals] = deque()
        self._responses: deque[float] = deque(maxlen=RECENT)
        self._interactive: deque[float] = deque(maxlen=RECENT)
        self._errors: deque[float] = deque(maxlen=RECENT)
        self._losses: deque[float] = deque(maxlen=RECENT // 10)
        self.curve = LossCurve()
        self.lost_losses = 0

    def worked(self, node: int, stage: int, kind: SpanKind, seconds: float) -> None:
        """A stage has ended a stretch of work."""
        self._busy[node][stage][_COLUMN[kind]] += seconds

    def served(self, node: int, starts: Sequence[float], ends: Sequence[float]) -> None:
        """A batch is through all stages of a node."""
        for busy, start, end in zip(self._busy[node], starts, ends, strict=True):
            busy[_COLUMN["serve"]] += end - start

    def ended(self, task: ServedTask) -> None:
        """A request has its outcome."""
        seconds, predicted = metrics.response(task), task.predicted_response_s
        if task.service == "interactive":
            self._interactive.append(math.inf if seconds is None else seconds)
        if seconds is None:
            return
        self._responses.append(seconds)
        if predicted is not None and seconds > 0.0:
            self._errors.append(abs(predicted - seconds) / seconds)

    def learned(self, loss: float) -> None:
        """A micro-batch's loss. Behind one that is not finite the mean begins again: the last good one is no news."""
        if math.isfinite(loss):
            self._losses.append(loss)
            self.curve.add(loss)
        else:
            self._losses.clear()
            self.lost_losses += 1

    @property
    def loss(self) -> float | None:
        return sum(self._losses) / len(self._losses) if self._losses else None

    @property
    def response_ms_p50(self) -> float | None:
        return _median(1e3 * seconds for seconds in self._responses)

    @property
    def forecast_error(self) -> float | None:
        """The median of |forecast - response| / response."""
        return _median(self._errors)

    def attainment(self, limits_s: Iterable[float]) -> list[tuple[float, float]]:
        """Each limit [s] with the share of interactive requests that finished within it, of all that ended; none before the
        first."""
        recent = self._interactive
        if not recent:
            return []
        return [(limit, sum(seconds <= limit for seconds in recent) / len(recent)) for limit in limits_s]

    def look(self, now: float, served: int, tokens: int) -> Lately:
        """What was done since the last look that is `LATELY_S` old, or the first; `served` requests and `tokens` so far."""
        last = Totals(now, np.array(self._busy), served, tokens)
        looks = self._looks
        if not looks:
            # The run may go on from an earlier attempt, whose work was not done just now.
            looks.append(last)
        while len(looks) > 1 and now - looks[1].time >= LATELY_S:
            looks.popleft()
        first = looks[0]
        looks.append(last)
        seconds = max(now - first.time, 1e-9)
        shares = (last.busy - first.busy) / seconds
        # Work may have begun before, or have run beside other work.
        shares /= np.maximum(shares.sum(axis=2, keepdims=True), 1.0)
        stages = [[StageUse(*stage) for stage in node] for node in np.round(shares, 4).tolist()]
        return Lately(stages, (served - first.served) / seconds, (tokens - first.tokens) / seconds)


def _median(values: Iterable[float]) -> float | None:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else None
