"""Stage times corrected by what really ran: recursive least squares with forgetting, per stage and kind of pass.

A latency form is a sum of terms that grow with the shape of a batch, and the correction is one gain for each term:

    t_real ~ sum_i g_i t_i(shape)

Gains are positive and bounded, so that predictions stay positive, monotone and within a factor of the file's. They
minimise the relative error of past passes, older ones counting less, plus a prior that pulls them towards one another:
a term of which nothing was seen moves with those that were. See docs/policy.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from lemix_hpc.policy.drift import DEFAULT_LIMIT, Drift, DriftWatch, Running, relative_error
from lemix_hpc.policy.events import PassKind, PassMeasured
from lemix_hpc.policy.latency import LatencyModel, Row, StageTime
from lemix_hpc.policy.memory import LessonMemory, Mean

MEMORY = 100
"""How many passes the past counts as."""
LARGEST_GAIN = 10.0
LARGEST_STEP = 1.2
"""A pass changes a gain at most by this factor, up or down."""
TRUSTED_ERROR = 0.3
"""Relative errors up to here count in full; beyond, a pass has no more pull than one with this error (Huber)."""
PRIOR_OF_DIFFERENCES = 0.1
PRIOR_OF_LEVEL = 0.01
"""Weights of the prior, in passes: for the gains to be equal, and for their mean to be 1."""
SWEEPS = 4


class Gains:
    """The gains of one stage and kind. `values` are for terms in the order of the latency form."""

    def __init__(self, count: int) -> None:
        self.values = [1.0] * count
        self.information = [[0.0] * count for _ in range(count)]
        self.target = [0.0] * count

    def seconds(self, parts: Sequence[float]) -> float:
        """Corrected seconds of a pass with these terms [s]."""
        return sum(gain * part for gain, part in zip(self.values, parts, strict=True))

    def learn(self, parts: Sequence[float], seconds: float) -> None:
        """Take in a pass that the file predicts as sum(parts) > 0, and that took `seconds`."""
        file = sum(parts)
        predicted = self.seconds(parts)
        weight = TRUSTED_ERROR / max(TRUSTED_ERROR, abs(seconds - predicted) / predicted)
        row = [part / file for part in parts]
        keep = 1.0 - 1.0 / MEMORY
        for i, mine in enumerate(row):
            information = self.information[i]
            for j, other in enumerate(row):
                information[j] = keep * information[j] + weight * mine * other
            self.target[i] = keep * self.target[i] + weight * mine * seconds / file
        self._solve()

    def _solve(self) -> None:
        """Towards the minimum by coordinate descent, within the bounds of a gain and of a step."""
        gains, count = self.values, len(self.values)
        lower = [max(1.0 / LARGEST_GAIN, gain / LARGEST_STEP) for gain in gains]
        upper = [min(LARGEST_GAIN, gain * LARGEST_STEP) for gain in gains]
        # The prior as a matrix: PRIOR_OF_DIFFERENCES on deviations from the mean gain, PRIOR_OF_LEVEL on the mean.
        shared = (PRIOR_OF_LEVEL - PRIOR_OF_DIFFERENCES) / count
        for _ in range(SWEEPS):
            for i in range(count):
                information = self.information[i]
                total = shared * (sum(gains) - gains[i])
                for j in range(count):
                    if j != i:
                        total += information[j] * gains[j]
                curvature = information[i] + PRIOR_OF_DIFFERENCES + shared
                best = (self.target[i] + PRIOR_OF_LEVEL - total) / curvature
                gains[i] = min(max(best, lower[i]), upper[i])


@dataclass(frozen=True, slots=True)
class Learned:
    """What a run has learned of one stage and kind from `passes` passes.

    `ratio`: running geometric mean of real over the file's time. `error_before`, `error_after`: running relative error of
    the file's predictions and of the corrected ones.
    """

    stage: int
    kind: PassKind
    gains: tuple[float, ...]
    passes: int
    ratio: float
    error_before: float
    error_after: float


def _mean_of(running: Running) -> Mean:
    return running.count, running.mean


class _Lesson:
    """One stage and kind: its gains, and how far predictions are off with and without them."""

    def __init__(self, stage: int, kind: PassKind, terms: int, limit: float) -> None:
        self._stage = stage
        self._kind = kind
        self.gains = Gains(terms)
        self.watch = DriftWatch(stage, kind, limit)
        self.error_after = Running()

    def take(self, time: float, parts: Sequence[float], seconds: float) -> None:
        self.watch.measured(time, sum(parts), seconds)
        self.error_after.add(relative_error(self.gains.seconds(parts), seconds))
        self.gains.learn(parts, seconds)

    def memory(self) -> LessonMemory:
        gains, watch = self.gains, self.watch
        return LessonMemory(
            stage=self._stage,
            kind=self._kind,
            gains=tuple(gains.values),
            information=tuple(map(tuple, gains.information)),
            target=tuple(gains.target),
            log_ratio=_mean_of(watch.log_ratio),
            error=_mean_of(watch.error),
            error_after=_mean_of(self.error_after),
            drift=watch.drift,
        )

    def recall(self, memory: LessonMemory) -> None:
        gains, watch = self.gains, self.watch
        gains.values[:], gains.target[:] = memory.gains, memory.target
        gains.information[:] = [list(row) for row in memory.information]
        watch.log_ratio, watch.error = Running(*memory.log_ratio), Running(*memory.error)
        watch.drift = memory.drift
        self.error_after = Running(*memory.error_after)

    def learned(self) -> Learned:
        watch = self.watch
        gains, errors = tuple(self.gains.values), (watch.error.mean, self.error_after.mean)
        return Learned(self._stage, self._kind, gains, watch.error.count, watch.ratio, *errors)


class Recalibrated:
    """What is learned of the stage times of one kind of node, and the alarms about them.

    With `active` False it only watches: predictions stay the file's. `limit` is the relative error that raises an alarm.
    """

    def __init__(self, latency: LatencyModel, *, active: bool = True, limit: float = DEFAULT_LIMIT) -> None:
        self._latency = latency
        self._active = active
        self._limit = limit
        self._lessons: dict[tuple[int, PassKind], _Lesson] = {}

    def measured(self, event: PassMeasured) -> Row | None:
        """Learn from a pass: the coefficients (`StageTime.row`) that its stage and kind has now, None if they are the file's.

        A pass that the file gives no time to teaches nothing.
        """
        form = self._given(event.kind)[event.stage]
        parts = form.terms(event.shape)
        if sum(parts) <= 0:
            return None
        key = event.stage, event.kind
        if key not in self._lessons:
            self._lessons[key] = _Lesson(*key, len(parts), self._limit)
        self._lessons[key].take(event.time, parts, event.seconds)
        return form.row(self._lessons[key].gains.values) if self._active else None

    def predicted(self, event: PassMeasured) -> float:
        """How long such a pass should take, by what was learned so far [s]."""
        parts = self._given(event.kind)[event.stage].terms(event.shape)
        lesson = self._lessons.get((event.stage, event.kind))
        return sum(parts) if lesson is None else lesson.gains.seconds(parts)

    def copy(self) -> Recalibrated:
        """Another one that goes on from here."""
        copy = Recalibrated(self._latency, active=self._active, limit=self._limit)
        for _ in copy.recall(self.memory):
            pass  # forecasts have these coefficients
        return copy

    @property
    def memory(self) -> tuple[LessonMemory, ...]:
        """All that it goes by."""
        return tuple(lesson.memory() for _, lesson in sorted(self._lessons.items()))

    def recall(self, memory: Iterable[LessonMemory]) -> Iterator[tuple[int, PassKind, Row]]:
        """Go on from what was learned of the same stage times: the coefficients that stages and kinds have now, where they
        are not the given ones."""
        for told in memory:
            key = told.stage, told.kind
            self._lessons[key] = _Lesson(*key, len(told.gains), self._limit)
            self._lessons[key].recall(told)
            if self._active:
                yield *key, self._given(told.kind)[told.stage].row(told.gains)

    @property
    def drifts(self) -> tuple[Drift, ...]:
        """Every alarm that was raised, by stage and kind; those with `until_s` None go on."""
        return tuple(lesson.watch.drift for _, lesson in sorted(self._lessons.items()) if lesson.watch.drift)

    @property
    def learned(self) -> tuple[Learned, ...]:
        """What was learned so far, by stage and kind."""
        return tuple(lesson.learned() for _, lesson in sorted(self._lessons.items()))

    def _given(self, kind: PassKind) -> tuple[StageTime, ...]:
        return self._latency.backward if kind == "backward" else self._latency.forward
