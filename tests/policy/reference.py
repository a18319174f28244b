"""The forecast of docs/policy.md from scratch: plain and slow, the oracle of the compiled one that is kept incrementally."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

Span = tuple[float, float]


@dataclass(frozen=True)
class Path:
    """Begin and end of a task's forward, and for training of its backward, on every stage, in seconds.

    `after`: when the stage is through with this forward and all before it. `idleness`: idle stage time in front of it, the
    paper's II.
    """

    fb: tuple[float, ...]
    fe: tuple[float, ...]
    bb: tuple[float, ...]
    be: tuple[float, ...]
    after: tuple[float, ...]
    idleness: float


@dataclass
class Work:
    """A task on a node: predicted seconds per stage, and the real begins and ends by stage. Serving has no `backward`."""

    task: int
    release: float
    forward: tuple[float, ...]
    backward: tuple[float, ...] = ()
    key: float = 0.0
    forward_ran: dict[int, Span] = field(default_factory=dict)
    backward_ran: dict[int, Span] = field(default_factory=dict)


class Node:
    """Unfinished tasks in the order in which the node is expected to run them, and what is known to have ended."""

    def __init__(self, stages: int, *, serving_first: bool) -> None:
        self.stages = stages
        self.serving_first = serving_first
        self.tasks: list[Work] = []
        self._ended = [-math.inf] * stages

    def assign(self, work: Work, now: float) -> None:
        """Training goes to the end, and so does everything without serving first; requests go by their keys."""
        place = len(self.tasks)
        if self.serving_first and not work.backward:
            place = self.requests
            paths = self.paths()
            while place > 0 and self._gives_way(self.tasks[place - 1], paths, work.key, now):
                place -= 1
        self.tasks.insert(place, work)

    @property
    def requests(self) -> int:
        """How many of the tasks serve."""
        return sum(not work.backward for work in self.tasks)

    def observe(self, task: int, stage: int, start: float, end: float, *, backward: bool) -> None:
        """A stage has run a task, which may be forgotten already."""
        self._ended[stage] = max(self._ended[stage], end)
        for work in self.tasks:
            if work.task == task:
                (work.backward_ran if backward else work.forward_ran)[stage] = (start, end)

    def forget(self, task: int) -> None:
        """A task has its outcome."""
        self.tasks = [work for work in self.tasks if work.task != task]

    def paths(self) -> dict[int, Path]:
        """The forecast of every task."""
        return self._walk(self.tasks)

    def expect(self, release: float, forward: Sequence[float], behind: int) -> Path:
        """The path of one more forward that would run behind the first so many tasks."""
        return self._walk([*self.tasks[:behind], Work(-1, release, tuple(forward))])[-1]

    @staticmethod
    def _gives_way(work: Work, paths: dict[int, Path], key: float, now: float) -> bool:
        return work.key > key and 0 not in work.forward_ran and paths[work.task].fb[0] > now

    def _walk(self, tasks: Sequence[Work]) -> dict[int, Path]:
        ended = list(self._ended)
        backwards: list[list[Span]] = [[] for _ in range(self.stages)]
        paths = {}
        for work in tasks:
            paths[work.task] = path = self._path(work, ended, backwards)
            ended = list(path.after)
            for stage, span in enumerate(zip(path.bb, path.be, strict=True)):
                backwards[stage].append(span)
        return paths

    def _path(self, work: Work, ended: Sequence[float], backwards: Sequence[Sequence[Span]]) -> Path:
        spans: list[Span] = []
        ready, idleness = work.release, 0.0
        for stage, duration in enumerate(work.forward):
            if stage in work.forward_ran:
                spans.append(work.forward_ran[stage])
            else:
                begin, busy = _fit(max(ready, ended[stage]), duration, ended[stage], sorted(backwards[stage]))
                spans.append((begin, begin + duration))
                idleness += max(0.0, begin - ended[stage] - busy) if ended[stage] > -math.inf else 0.0
            ready = spans[-1][1]
        after = tuple(max(before, end) for before, (_, end) in zip(ended, spans, strict=True))
        back: list[Span] = []
        for stage in reversed(range(len(work.backward))):
            back.insert(0, work.backward_ran.get(stage, (ready, ready + work.backward[stage])))
            ready = back[0][1]
        return Path(*_columns(spans), *_columns(back), after, idleness)


def _columns(spans: Sequence[Span]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(begin for begin, _ in spans), tuple(end for _, end in spans)


def _fit(begin: float, duration: float, ended: float, backwards: Sequence[Span]) -> Span:
    """Begin of a forward that overlaps none of the backwards, given by their begins, and how long those keep the stage busy."""
    busy = 0.0
    for backward_begin, backward_end in backwards:
        if begin + duration > backward_begin:
            begin = max(begin, backward_end)
            if ended <= backward_begin:
                busy += backward_end - backward_begin
    return begin, busy
