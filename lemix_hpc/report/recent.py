"""What is needed of a run's records for a while only, so that reports of long runs need no more memory."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from lemix_hpc.policy.classes import ServiceClass
from lemix_hpc.records.schema import ServedTask, Stretch

K = TypeVar("K")
V = TypeVar("V")

MOST = 1 << 16
LATE_S = 60.0
"""How long after the end of a request there may still be work for it, by the clocks of different hosts."""


class Recent(OrderedDict[K, V]):
    """The keys that were set last only, `MOST` of them."""

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > MOST:
            self.popitem(last=False)


def in_order(stretches: Iterable[Stretch], most: int = MOST) -> Iterator[Stretch]:
    """In the order of their starts. They come about in the order of their ends, and none more than `most` places too late."""
    waiting: list[Stretch] = []
    for stretch in stretches:
        waiting.append(stretch)
        if len(waiting) >= 2 * most:
            waiting.sort(key=_start)
            yield from waiting[:most]
            del waiting[:most]
    waiting.sort(key=_start)
    yield from waiting


def _start(stretch: Stretch) -> float:
    return stretch.start


class Known(NamedTuple):
    """What is asked of a request beside its work. `first_token`, `placed`, `ended` [s] of the run, None without one; `tokens`:
    of its answer."""

    first_token: float | None
    tokens: int
    finished: bool
    service: ServiceClass
    arrival: float
    placed: float | None
    ended: float | None


class AtHand:
    """Requests by id, while the time of what they are asked for goes on. Their records come about in the order of their ends,
    or of their arrivals: they are read on until a request is found, at most `most` that have not ended by then."""

    def __init__(self, served: Iterable[ServedTask], most: int = MOST) -> None:
        self._served = iter(served)
        self._most = most
        self._known: dict[str, Known] = {}
        self._ends: list[tuple[float, str]] = []
        self._asked: Stretch | None = None
        self._found: list[Known | None] = []

    def of(self, stretch: Stretch) -> Sequence[Known | None]:
        """Of each member of a batch; asked for by several, one after the other."""
        if stretch is not self._asked:
            self._asked = stretch
            self._found = [self.get(task, stretch.start) for task in stretch.members]
        return self._found

    def get(self, id: str, now: float) -> Known | None:
        """None if it is not known, as if it was lost; `now`: of its work [s], never much less than before."""
        while id not in self._known and (len(self._known) < self._most or self._forget(now)):
            task = next(self._served, None)
            if task is None:
                return None
            done = task.outcome == "finished"
            self._known[task.id] = Known(
                task.first_token, len(task.output), done, task.service, task.arrival, task.placed, task.finished
            )
            heapq.heappush(self._ends, (task.finished or task.first_token or task.arrival, task.id))
        return self._known.get(id)

    def _forget(self, now: float) -> bool:
        """Those that ended long ago; False if there are none."""
        while self._ends and self._ends[0][0] < now - LATE_S:
            self._known.pop(heapq.heappop(self._ends)[1], None)
        return len(self._known) < self._most
