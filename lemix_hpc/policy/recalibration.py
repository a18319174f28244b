"""Stage times corrected by what really ran: recursive least squares with forgetting, per stage and kind of pass.

A latency form is a sum of terms that grow with the shape of a batch, and the correction is one gain for each term:

    t_real ~ sum_i g_i t_i(shape)

Gains are positive and bounded, so that predictions stay positive, monotone and within a factor of the file's. They
minimise the relative error of past passes, older ones counting less, plus a prior that pulls them towards one another:
a term of which nothing was seen moves with those that were. See docs/policy.md. The sums are in `lemix_hpc.policy.lessons`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lemix_hpc.policy.drift import DEFAULT_LIMIT, Drift, followed
from lemix_hpc.policy.events import BatchMeasured, PassKind, PassMeasured
from lemix_hpc.policy.latency import LatencyModel, StageTime
from lemix_hpc.policy.latency_tables import BACKWARD_PASS, FORWARD_PASS, SERVE_PASS
from lemix_hpc.policy.lessons import correct, expect, learn, make_lessons
from lemix_hpc.policy.memory import Learned, LessonMemory
from lemix_hpc.policy.state import Floats

KINDS: dict[PassKind, int] = {"forward": FORWARD_PASS, "backward": BACKWARD_PASS, "serve": SERVE_PASS}
SERVED: PassKind = "serve"


class Measured:
    """A measured pass as arrays, see `lessons.learn`: of the stages from the `first` on."""

    def __init__(self, event: PassMeasured | BatchMeasured) -> None:
        if isinstance(event, BatchMeasured):
            self.kind, self.first, self.seconds = SERVED, 0, np.array(event.seconds)
        else:
            self.kind, self.first, self.seconds = event.kind, event.stage, np.array((event.seconds,))
        self.direction, self.stages = KINDS[self.kind], slice(self.first, self.first + self.seconds.size)
        self.time, self.tokens, shape = event.time, event.shape.tokens, event.shape
        self.sizes = np.array((shape.squares, shape.cached, shape.prefills), dtype=np.float64)


class _Levels:
    """What tokens cost on each stage. Most stages are alike."""

    def __init__(self, forms: Sequence[StageTime]) -> None:
        self._forms = list(dict.fromkeys(forms))
        self._which = np.array([self._forms.index(form) for form in forms])

    def of(self, took: Measured) -> Floats:
        """On the stages of a pass."""
        levels: Floats = np.array([form.level(took.tokens) for form in self._forms])[self._which[took.stages]]
        return levels


class Recalibrated:
    """What is learned of the stage times of one kind of node, and the alarms about them.

    `limit` is the relative error that raises an alarm.
    """

    def __init__(self, latency: LatencyModel, *, limit: float = DEFAULT_LIMIT) -> None:
        self._latency = latency
        self._limit = limit
        self._lessons = make_lessons(latency)
        self._levels = [_Levels(forms) for forms in (latency.forward, latency.backward, latency.forward)]
        self._drifts: dict[tuple[int, PassKind], Drift] = {}

    def measured(self, took: Measured, linear: Floats | None) -> Floats:
        """Learn from a pass: what it should have taken on each of its stages, by what was learned before [s].

        `linear`: (3, stages, 5), coefficients (`StageTime.row`) by direction and stage, to be set right; None: only watch. A
        pass that the file gives no time to teaches nothing.
        """
        expected, levels = np.empty_like(took.seconds), self._levels[took.direction].of(took)
        where = self._lessons, took.direction, took.first
        if learn(*where, took.sizes, levels, took.seconds, expected, self._limit):
            for stage in range(took.first, took.first + took.seconds.size):
                self._look(took.kind, stage, took.time)
        if linear is not None:
            correct(*where, linear[took.direction, took.stages])
        return expected

    def predicted(self, took: Measured) -> Floats:
        """How long such a pass should take on each of its stages, by what was learned so far [s]."""
        expected, levels = np.empty_like(took.seconds), self._levels[took.direction].of(took)
        expect(self._lessons, took.direction, took.first, took.sizes, levels, expected)
        return expected

    def _look(self, kind: PassKind, stage: int, time: float) -> None:
        key, lesson = (stage, kind), self._lessons[KINDS[kind], stage]
        drift = followed(
            self._drifts.get(key),
            stage,
            kind,
            time,
            int(lesson["passes"]),
            lesson["log_ratio"],
            lesson["error"],
            self._limit,
        )
        if drift is not None:
            self._drifts[key] = drift
            lesson["drifting"] = drift.until_s is None

    def copy(self) -> Recalibrated:
        """Another one that goes on from here."""
        copy = Recalibrated(self._latency, limit=self._limit)
        copy.recall(self.memory, None)
        return copy

    @property
    def memory(self) -> tuple[LessonMemory, ...]:
        """All that it goes by."""
        return tuple(self._remembered(stage, kind) for stage, kind in self._known())

    def recall(self, memory: Iterable[LessonMemory], linear: Floats | None) -> None:
        """Go on from what was learned of the same stage times; `linear` as in `measured`."""
        for told in memory:
            lesson, count = self._lessons[KINDS[told.kind], told.stage], len(told.gains)
            lesson["gains"][:count], lesson["target"][:count] = told.gains, told.target
            lesson["information"][:count, :count] = told.information
            (lesson["passes"], lesson["log_ratio"]) = told.log_ratio
            lesson["error"], lesson["error_after"] = told.error[1], told.error_after[1]
            if told.drift is not None:
                self._drifts[told.stage, told.kind] = told.drift
                lesson["drifting"] = told.drift.until_s is None
        if linear is not None:
            for direction in KINDS.values():
                correct(self._lessons, direction, 0, linear[direction])

    @property
    def drifts(self) -> tuple[Drift, ...]:
        """Every alarm that was raised, by stage and kind; those with `until_s` None go on."""
        return tuple(drift for _, drift in sorted(self._drifts.items()))

    @property
    def learned(self) -> tuple[Learned, ...]:
        """What was learned so far, by stage and kind."""
        return tuple(self._learned(stage, kind) for stage, kind in self._known())

    def _known(self) -> Iterator[tuple[int, PassKind]]:
        """Of which stages and kinds there is something."""
        for stage in range(self._latency.stages):
            yield from ((stage, kind) for kind in sorted(KINDS) if self._lessons[KINDS[kind], stage]["passes"])

    def _remembered(self, stage: int, kind: PassKind) -> LessonMemory:
        lesson = self._lessons[KINDS[kind], stage]
        count, passes = int(lesson["count"]), int(lesson["passes"])
        return LessonMemory(
            stage=stage,
            kind=kind,
            gains=tuple(lesson["gains"][:count].tolist()),
            information=tuple(map(tuple, lesson["information"][:count, :count].tolist())),
            target=tuple(lesson["target"][:count].tolist()),
            log_ratio=(passes, float(lesson["log_ratio"])),
            error=(passes, float(lesson["error"])),
            error_after=(passes, float(lesson["error_after"])),
            drift=self._drifts.get((stage, kind)),
        )

    def _learned(self, stage: int, kind: PassKind) -> Learned:
        lesson = self._lessons[KINDS[kind], stage]
        gains, ratio = tuple(lesson["gains"][: lesson["count"]].tolist()), math.exp(lesson["log_ratio"])
        return Learned(
            stage, kind, gains, int(lesson["passes"]), ratio, float(lesson["error"]), float(lesson["error_after"])
        )
