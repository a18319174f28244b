"""The figures of each class of requests while a run lasts, by the requests that ended last."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping
from typing import get_args

import msgspec

from lemix_hpc.policy.classes import ServiceClass
from lemix_hpc.records.schema import ClassFigures, ServedTask
from lemix_hpc.records.tally import Tally
from lemix_hpc.report.classes import class_figures
from lemix_hpc.runtime.transport.messages import BatchRan

RECENT = 200
"""So many requests of a class count."""
WATCHED = 256
"""Times between tokens are those of about so many requests of a class at a time: all where there are no more. Whether one is
among them is drawn when it is placed, whatever its node, by how many are under way then."""
GAPS = 4096
"""So many of a class count, the last ones."""
_GOLDEN = (5.0**0.5 - 1.0) / 2.0
"""Multiples of it are spread evenly between whole numbers, whichever of them are taken in regular turn."""


class LiveClasses:
    """`limits_ms`: on interactive requests; `window_s`: of batch requests. `tally`: of the requests so far, kept up here."""

    def __init__(self, limits_ms: Mapping[str, float], window_s: float, tally: Tally) -> None:
        self.tally = tally
        self._limits_ms = limits_ms
        self._window_s = window_s
        self._recent: dict[ServiceClass, deque[ServedTask]] = defaultdict(lambda: deque(maxlen=RECENT))
        self._under_way = Counter[ServiceClass]()
        # Of those that are watched, by number: when their last token came.
        self._watched: dict[ServiceClass, dict[int, float | None]] = {service: {} for service in get_args(ServiceClass)}
        self._gaps: dict[ServiceClass, deque[float]] = defaultdict(lambda: deque(maxlen=GAPS))

    def placed(self, number: int, service: ServiceClass) -> None:
        """A request goes to a node."""
        self._under_way[service] += 1
        if number * _GOLDEN % 1.0 * self._under_way[service] < WATCHED:
            self._watched[service][number] = None

    def served(self, ran: BatchRan) -> None:
        """A batch is through all stages of a node. Nothing is done for each of its tokens, but for those that are watched."""
        end = ran.ends[-1]
        for service, watched in self._watched.items():
            for number in watched.keys() & ran.tasks:
                if number in ran.partial:
                    continue
                before, watched[number] = watched[number], end
                if before is not None:
                    self._gaps[service].append(end - before)

    def ended(self, task: ServedTask) -> None:
        """A request has its outcome."""
        self.tally.add(task)
        self._recent[task.service].append(task)
        if task.node is not None and task.number is not None:
            self._under_way[task.service] = max(0, self._under_way[task.service] - 1)
            self._watched[task.service].pop(task.number, None)

    def figures(self) -> dict[str, ClassFigures]:
        """Of each class that had requests; counts are of all of them."""
        return {
            service: self._figures(service, self._gaps[service])
            for service in get_args(ServiceClass)
            if service in self.tally.received
        }

    def _figures(self, service: ServiceClass, gaps: Iterable[float]) -> ClassFigures:
        window_s = self._window_s if service == "batch" else None
        tally = self.tally
        recent = class_figures(self._recent[service], gaps, limits_ms=self._limits_ms, window_s=window_s)
        return msgspec.structs.replace(recent, received=tally.received[service], finished=tally.finished[service])
