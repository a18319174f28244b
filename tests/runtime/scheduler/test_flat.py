"""What the scheduler rank keeps does not grow with the tasks that it has ever served."""

from __future__ import annotations

import gc
import sys
import types
from itertools import count

import pytest

from lemix_hpc.records.schema import SpanKind
from lemix_hpc.runtime.scheduler import live_classes, task_table
from lemix_hpc.runtime.transport import messages as m
from tests.runtime.scheduler.conftest import LEADERS, SHAPE, Caller, Rank, Server, Start, training

OUTSIDE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)


class Nodes:
    """Nodes that do at once what the rank sends them: prompts and one more token, and training with a step after each group."""

    def __init__(self, rank: Rank, server: Server) -> None:
        self._rank = rank
        self._server = server
        self._calls = count()
        self._steps = [0, 0]
        self._clock = 0.0

    def serve(self, calls: int) -> None:
        """So many, one after the other, with the training that is admitted meanwhile."""
        for _ in range(calls):
            self._server.calls.append(Caller(f"call{next(self._calls)}", self._clock, (8, 2)))
            self._rank.turn(self._clock)
            for rank, message in self._rank.sent():
                if isinstance(message, m.HttpCall):
                    self._answer(LEADERS.index(rank), message.task)
                elif isinstance(message, m.Train):
                    self._train(LEADERS.index(rank), message)

    def _answer(self, node: int, task: int) -> None:
        for _ in range(2):
            begin, middle = self._clock, self._clock + 1e-3
            self._clock += 2e-3
            ran = m.BatchRan(task, [task], [], 3, SHAPE, [begin, middle], [middle, self._clock], [1e-3] * 2)
            self._rank.turn(self._clock, m.NodeReport(node, [ran]))
        self._rank.turn(self._clock, m.NodeReport(node, [m.AnswerDone(task, [begin, middle], [middle, self._clock])]))
        done = m.RequestDone(task, node, self._clock, self._clock, 6.0, 7, [1, 2], (3, 4))
        self._rank.turn(self._clock, m.HttpParts([m.HttpPart(task, 200, [], b"x", False)]), done)

    def _train(self, node: int, message: m.Train) -> None:
        batch = message.micro_batch
        passes: list[tuple[SpanKind, tuple[int, int]]] = [("forward", (0, 1)), ("backward", (1, 0))]
        for kind, stages in passes:
            for stage in stages:
                ends = self._clock + 1e-3
                self._work(m.WorkSpan(node, stage, kind, [batch.id], self._clock, ends, 3, -1, True, SHAPE, 1e-3))
        self._rank.turn(self._clock, m.Loss(batch.id, 1.0))
        if batch.index == batch.group_size - 1:
            self._steps[node] += 1
            self._rank.turn(self._clock, m.Stepped(node, batch.group, self._steps[node]))

    def _work(self, span: m.WorkSpan) -> None:
        self._clock = span.end
        self._rank.turn(self._clock, m.SpanReport([span]))


def kept(*roots: object) -> tuple[int, int]:
    """Objects that can be reached from here, without code, and their bytes."""
    seen: dict[int, object] = {}
    left = list(roots)
    while left:
        one = left.pop()
        if id(one) not in seen and not isinstance(one, OUTSIDE) and not type(one).__module__.startswith("numba"):
            seen[id(one)] = one
            left += gc.get_referents(one)
    return len(seen), sum(map(sys.getsizeof, seen.values()))


def test_nothing_grows_with_the_tasks_ever_served(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (task_table, "LATE_REPORTS"),
        (live_classes, "RECENT"),
        (live_classes, "WATCHED"),
        (live_classes, "GAPS"),
    ):
        monkeypatch.setattr(module, name, 20)
    server = Server()
    rank = start(feed=training(None, 2), server=server, interval=1.0)
    nodes = Nodes(rank, server)

    def measured() -> tuple[int, int]:
        rank.recorder.flush()
        return kept(rank.loop, rank.recorder)

    nodes.serve(500)
    before = measured()
    nodes.serve(500)
    after = measured()
    assert before[0] > 900, "all that there is is found"
    assert after[0] <= before[0] + 20 and after[1] <= before[1] + 2_000
