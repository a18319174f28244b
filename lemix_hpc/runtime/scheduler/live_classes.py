"""The figures of each class of requests while a run lasts, by the requests that ended last."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import get_args

import msgspec

from lemix_hpc.policy.classes import ServiceClass
from lemix_hpc.records.schema import ClassFigures, ServedTask
from lemix_hpc.records.tally import Tally
from lemix_hpc.report.classes import class_figures
from lemix_hpc.runtime.scheduler.task_table import ServingTask
from lemix_hpc.runtime.transport.messages import BatchRan

RECENT = 200
"""So many requests of a class count."""
NODES, BATCHES, ENDED = 4, 256, 1000
"""Times between tokens are those of some nodes, of so many of their batches that ended last, and of the requests under way
and so many others."""


class LiveClasses:
    """`limits_ms`: on interactive requests; `window_s`: of batch requests; `nodes`: how many there are. `tally`: of the
    requests so far, which is kept up."""

    def __init__(self, limits_ms: Mapping[str, float], window_s: float, nodes: int, tally: Tally) -> None:
        self.tally = tally
        self._limits_ms = limits_ms
        self._window_s = window_s
        self._recent: dict[ServiceClass, deque[ServedTask]] = defaultdict(lambda: deque(maxlen=RECENT))
        self._every = -(-nodes // NODES)
        self._batches: deque[BatchRan] = deque(maxlen=BATCHES)
        self._services: dict[int, ServiceClass] = {}

    def served(self, node: int, ran: BatchRan) -> None:
        """A batch is through all stages. What follows for its requests is only looked at for the figures."""
        if node % self._every == 0:
            self._batches.append(ran)

    def ended(self, task: ServedTask) -> None:
        """A request has its outcome."""
        self.tally.add(task)
        self._recent[task.service].append(task)
        if task.number is not None:
            self._services[task.number] = task.service
            if len(self._services) > ENDED:
                del self._services[next(iter(self._services))]

    def figures(self, serving: Mapping[int, ServingTask]) -> dict[str, ClassFigures]:
        """Of each class that had requests; counts are of all of them. `serving`: the requests under way, by number."""
        gaps = self._gaps(serving)
        return {
            service: self._figures(service, gaps[service])
            for service in get_args(ServiceClass)
            if service in self.tally.received
        }

    def _gaps(self, serving: Mapping[int, ServingTask]) -> dict[ServiceClass, list[float]]:
        """Times between tokens [s]."""
        gaps: dict[ServiceClass, list[float]] = defaultdict(list)
        token_at: dict[int, float] = {}
        for ran in self._batches:
            end = ran.ends[-1]
            for number in ran.tasks if not ran.partial else set(ran.tasks).difference(ran.partial):
                before, token_at[number] = token_at.get(number), end
                task = serving.get(number)
                service = self._services.get(number) if task is None else task.request.service
                if before is not None and service is not None:
                    gaps[service].append(end - before)
        return gaps

    def _figures(self, service: ServiceClass, gaps: Sequence[float]) -> ClassFigures:
        window_s = self._window_s if service == "batch" else None
        tally = self.tally
        recent = class_figures(self._recent[service], gaps, limits_ms=self._limits_ms, window_s=window_s)
        return msgspec.structs.replace(recent, received=tally.received[service], finished=tally.finished[service])
