"""What the stages of a node report of serving, put together: the scheduler hears of batches that are through all stages."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lemix_hpc.runtime.transport import messages as m

LATE_REPORTS = 4096
"""So many requests that have ended are known on: reports of different stages are not ordered among each other."""


@dataclass(slots=True)
class _Request:
    """`left`: passes that give a token and are still to come, on each stage; `starts` and `ends`: of its first pass there, and
    of its last one so far."""

    tokens: int
    left: list[int]
    starts: list[float]
    ends: list[float]


class NodeReports:
    """Takes what stages report, and sends a `NodeReport` when `tell` is called and there is something. A leader tells once in
    each of its turns, and before anything else that it sends to the scheduler."""

    def __init__(self, node: int, stages: int, send: Callable[[m.NodeReport], None]) -> None:
        self._node = node
        self._stages = stages
        self._send = send
        self._requests: dict[int, _Request] = {}
        self._ended: deque[int] = deque()
        # By batch and stage.
        self._under_way: dict[int, dict[int, m.WorkSpan]] = {}
        self._untold: list[m.BatchRan | m.Passed | m.AnswerDone] = []

    def expect(self, task: int, tokens: int) -> None:
        """A request is here that asks for so many tokens, 1 to have its prompt scored; 0: the policy knows nothing of it."""
        if tokens == 0:
            return
        stages = self._stages
        self._requests[task] = _Request(tokens, [tokens] * stages, [math.inf] * stages, [0.0] * stages)

    def ended(self, task: int) -> None:
        """A request has its outcome, maybe with fewer tokens."""
        self._ended.append(task)
        if len(self._ended) > LATE_REPORTS:
            self._requests.pop(self._ended.popleft(), None)

    def take(self, spans: Sequence[m.WorkSpan]) -> list[m.WorkSpan]:
        """What a stage reports. Returns what is not for here: training, and stretches that end no pass."""
        others = [span for span in spans if span.kind != "serve" or not span.complete]
        for span in spans:
            if span.kind == "serve" and span.complete:
                self._take(span)
        return others

    def tell(self) -> None:
        """Let the scheduler know of what is whole."""
        if self._untold:
            untold, self._untold = self._untold, []
            self._send(m.NodeReport(self._node, untold))

    def _take(self, span: m.WorkSpan) -> None:
        stages = self._under_way.setdefault(span.batch, {})
        stages[span.stage] = span
        if len(stages) == self._stages:
            del self._under_way[span.batch]
            self._untold.append(_whole([stages[stage] for stage in range(self._stages)]))
        for task in span.tasks:
            request = self._requests.get(task)
            if request is not None:
                self._pass(task, request, span, partial=task in span.partial)

    def _pass(self, task: int, request: _Request, span: m.WorkSpan, *, partial: bool) -> None:
        stage = span.stage
        request.starts[stage] = min(request.starts[stage], span.start)
        request.ends[stage] = span.end
        request.left[stage] -= not partial
        if request.left[stage] != 0 or partial:
            return
        if request.tokens == 1:
            self._untold.append(m.Passed(stage, task, request.starts[stage], span.end))
        elif not any(request.left):
            self._untold.append(m.AnswerDone(task, request.starts, request.ends))
        if not any(request.left):
            del self._requests[task]


def _whole(spans: Sequence[m.WorkSpan]) -> m.BatchRan:
    one = spans[0]
    assert one.shape is not None, "a batch has one"
    return m.BatchRan(
        one.batch,
        one.tasks,
        one.partial,
        one.version,
        one.shape,
        [span.start for span in spans],
        [span.end for span in spans],
        [span.worked for span in spans],
    )
