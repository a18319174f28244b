"""The figures of each class of requests while a run lasts, by the requests that ended last."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from typing import get_args

import msgspec

from lemix_hpc.policy.classes import ServiceClass
from lemix_hpc.records.schema import ClassFigures, ServedTask
from lemix_hpc.records.tally import Tally
from lemix_hpc.report.classes import class_figures
from lemix_hpc.runtime.scheduler.task_table import ServingTask
from lemix_hpc.runtime.transport.messages import WorkSpan

RECENT = 200
"""So many requests of a class count; and for each of them so many times between tokens."""
GAPS_OF_EACH = 10


class LiveClasses:
    """`limits_ms`: on interactive requests; `window_s`: of batch requests; `last_stage`: where tokens come from. `tally`: of
    the requests so far, which is kept up."""

    def __init__(self, limits_ms: Mapping[str, float], window_s: float, last_stage: int, tally: Tally) -> None:
        self.tally = tally
        self._limits_ms = limits_ms
        self._window_s = window_s
        self._last_stage = last_stage
        self._recent: dict[ServiceClass, deque[ServedTask]] = defaultdict(lambda: deque(maxlen=RECENT))
        self._gaps: dict[ServiceClass, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT * GAPS_OF_EACH))
        self._token_at: dict[int, float] = {}

    def worked(self, span: WorkSpan, serving: Mapping[int, ServingTask]) -> None:
        """A stage has ended a stretch of work."""
        if span.kind != "serve" or span.stage != self._last_stage:
            return
        for number in span.tasks:
            task = serving.get(number)
            if task is None or number in span.partial:
                continue
            if number in self._token_at:
                self._gaps[task.request.service].append(span.end - self._token_at[number])
            self._token_at[number] = span.end

    def ended(self, task: ServedTask) -> None:
        """A request has its outcome."""
        self.tally.add(task)
        self._recent[task.service].append(task)
        if task.number is not None:
            self._token_at.pop(task.number, None)

    def figures(self) -> dict[str, ClassFigures]:
        """Of each class that had requests; counts are of all of them."""
        return {service: self._figures(service) for service in get_args(ServiceClass) if service in self.tally.received}

    def _figures(self, service: ServiceClass) -> ClassFigures:
        window_s = self._window_s if service == "batch" else None
        tally = self.tally
        recent = class_figures(self._recent[service], self._gaps[service], limits_ms=self._limits_ms, window_s=window_s)
        return msgspec.structs.replace(recent, received=tally.received[service], finished=tally.finished[service])
