"""The execution-path forecast of one node (LeMix, Algorithm 1, with the repairs of docs/policy.md).

For a task released at r, with pfe_s the latest forward end expected on stage s among the tasks assigned before it:

    fb_0 = max(r, pfe_0);   fb_s = max(fe_{s-1}, pfe_s);   fe_s = fb_s + F_s
    for every backward [bb_s, be_s] expected there and not yet run, in the order of bb_s, while fe_s > bb_s:
        fb_s = max(fb_s, be_s);   fe_s = fb_s + F_s                       (far dependency)
    training:  bb_{S-1} = fe_{S-1};  be_s = bb_s + B_s;  bb_{s-1} = be_s

Real begin and end times replace the expected ones, a forward that has not run on a stage begins no earlier than what is
known to have ended there, and everything behind is forecast anew. A backward keeps to its equation: it may rest and
resume, so that the end of other work does not say that it has not begun.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Path:
    """Begin and end of a task's forward, and for training of its backward, on every stage, in seconds.

    `idleness` is the idle stage time that the task adds in front of itself: the paper's II.
    """

    release: float
    fb: tuple[float, ...]
    fe: tuple[float, ...]
    bb: tuple[float, ...] = ()
    be: tuple[float, ...] = ()
    idleness: float = 0.0

    @property
    def response(self) -> float:
        return self.fe[-1] - self.release

    @property
    def completion(self) -> float:
        """When the task is through: end of the forward on the last stage, or of the backward on the first."""
        return self.be[0] if self.be else self.fe[-1]


Span = tuple[float, float]


@dataclass(slots=True)
class _Work:
    """Predicted seconds per stage, and the real begin and end by stage where it has run. Serving has no `backward`."""

    release: float
    forward: tuple[float, ...]
    backward: tuple[float, ...]
    forward_seen: dict[int, Span] = field(default_factory=dict)
    backward_seen: dict[int, Span] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return len(self.backward_seen if self.backward else self.forward_seen) == len(self.forward)


@dataclass(slots=True)
class _Expected:
    """The stages as they are expected to be behind the tasks walked so far.

    `ended`: latest forward end, or end of anything that has run; -inf on a stage that was never used. `backwards`: those
    of unfinished tasks; one that has run already lies before `ended` and moves nothing.
    """

    ended: list[float]
    backwards: list[list[Span]]

    def add(self, path: Path) -> None:
        self.ended = [max(before, end) for before, end in zip(self.ended, path.fe, strict=True)]
        for stage, span in enumerate(zip(path.bb, path.be, strict=True)):
            # Unequal micro-batches can overtake: only in time order is one look at each backward enough.
            insort(self.backwards[stage], span)


class NodeForecast:
    """What is expected of one node: the tasks assigned to it, in order, and the path of each."""

    def __init__(self, stages: int) -> None:
        self._stages = stages
        self._seen_end = [-math.inf] * stages
        self._tasks: dict[int, _Work] = {}
        self._paths: dict[int, Path] = {}
        self._expected = self._nothing_expected()
        self._stale = False

    def predict(self, release: float, forward: Sequence[float], backward: Sequence[float] = ()) -> Path:
        """The path that a task would take if it were assigned now. `backward` is empty for serving."""
        self._refresh()
        return self._walk(_Work(release, tuple(forward), tuple(backward)), self._expected)

    def assign(self, task: int, path: Path, forward: Sequence[float], backward: Sequence[float] = ()) -> None:
        """Take a task whose path was predicted just before."""
        self._tasks[task] = _Work(path.release, tuple(forward), tuple(backward))
        self._paths[task] = path
        self._expected.add(path)

    def observe(self, task: int, stage: int, start: float, end: float, *, backward: bool) -> None:
        """A stage has run a task's forward or backward from `start` to `end`; later forecasts follow from it.

        The task may be finished and forgotten already: reports of different stages overtake one another, and the stage was
        busy all the same.
        """
        self._seen_end[stage] = max(self._seen_end[stage], end)
        self._stale = True
        work = self._tasks.get(task)
        if work is None:
            return
        (work.backward_seen if backward else work.forward_seen)[stage] = (start, end)
        if work.done:
            del self._tasks[task]

    def forget(self, task: int) -> None:
        """The task is finished or lost: it is expected nowhere any more. Unknown ones are ignored."""
        if self._tasks.pop(task, None) is not None:
            self._stale = True

    def path(self, task: int) -> Path | None:
        """The current forecast of an unfinished task."""
        self._refresh()
        return self._paths.get(task)

    def _nothing_expected(self) -> _Expected:
        return _Expected(list(self._seen_end), [[] for _ in range(self._stages)])

    def _refresh(self) -> None:
        """Forecast every unfinished task anew, in the order of assignment, from what really happened."""
        if not self._stale:
            return
        self._stale = False
        self._paths = {}
        self._expected = self._nothing_expected()
        for task, work in self._tasks.items():
            self._paths[task] = path = self._walk(work, self._expected)
            self._expected.add(path)

    def _walk(self, work: _Work, expected: _Expected) -> Path:
        fb, fe, idleness = [], [], 0.0
        ready = work.release
        for stage, duration in enumerate(work.forward):
            if stage in work.forward_seen:
                begin, ready = work.forward_seen[stage]
            else:
                ended = expected.ended[stage]
                begin, busy = _fit(max(ready, ended), duration, ended, expected.backwards[stage])
                ready = begin + duration
                if math.isfinite(ended):
                    idleness += max(0.0, begin - ended - busy)
            fb.append(begin)
            fe.append(ready)
        bb, be = _backward(work, fe[-1]) if work.backward else ((), ())
        return Path(work.release, tuple(fb), tuple(fe), bb, be, idleness)


def _backward(work: _Work, ready: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Begins and ends of a backward whose forward ends on the last stage at `ready`."""
    spans: list[Span] = []
    for stage in reversed(range(len(work.backward))):
        spans.append(work.backward_seen.get(stage, (ready, ready + work.backward[stage])))
        ready = spans[-1][1]
    return tuple(begin for begin, _ in reversed(spans)), tuple(end for _, end in reversed(spans))


def _fit(begin: float, duration: float, ended: float, backwards: Sequence[Span]) -> tuple[float, float]:
    """Begin of a forward that overlaps none of the backwards, and how long those before it keep the stage busy."""
    busy = 0.0
    for backward_begin, backward_end in backwards:
        if begin + duration > backward_begin:
            begin = max(begin, backward_end)
            if ended <= backward_begin:
                busy += backward_end - backward_begin
    return begin, busy
