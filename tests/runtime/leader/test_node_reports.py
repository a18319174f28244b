"""What stages report one by one, and what the scheduler is told of it."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.policy.latency import Shape
from lemix_hpc.runtime.leader import node_reports
from lemix_hpc.runtime.leader.node_reports import NodeReports
from lemix_hpc.runtime.transport import messages as m

SHAPE = Shape.of((1, 1))
STAGES = 3


class Told:
    """A node, and what it has told the scheduler."""

    def __init__(self) -> None:
        self.reports: list[m.NodeReport] = []
        self.node = NodeReports(4, STAGES, self.reports.append)

    def ran(self, stage: int, batch: int, tasks: list[int], start: float, partial: list[int] | None = None) -> None:
        span = m.WorkSpan(4, stage, "serve", tasks, start, start + 1, 2, batch, True, SHAPE, 0.5, partial or [])
        assert self.node.take([span]) == []

    def passes(self, batch: int, tasks: list[int], start: float, partial: list[int] | None = None) -> None:
        for stage in range(STAGES):
            self.ran(stage, batch, tasks, start + stage, partial)

    def work(self) -> list[m.BatchRan | m.Passed | m.AnswerDone]:
        self.node.tell()
        told = [work for report in self.reports for work in report.work]
        self.reports.clear()
        return told


def batch(number: int, tasks: list[int], start: float, partial: list[int] | None = None) -> m.BatchRan:
    starts = [start + stage for stage in range(STAGES)]
    return m.BatchRan(number, tasks, partial or [], 2, SHAPE, starts, [s + 1 for s in starts], [0.5] * STAGES)


def test_a_batch_is_told_once_whole_and_several_go_together() -> None:
    told = Told()
    told.ran(0, 7, [1], 0.0)
    told.ran(2, 7, [1], 2.0)
    assert told.work() == [] and told.reports == [], "reports of different stages are not ordered among each other"
    told.ran(1, 7, [1], 1.0)
    told.passes(8, [2], 3.0)
    told.node.tell()
    [report] = told.reports
    assert report == m.NodeReport(4, [batch(7, [1], 0.0), batch(8, [2], 3.0)])
    assert [(span.stage, span.start, span.batch) for span in report.spans()][:3] == [
        (0, 0.0, 7),
        (1, 1.0, 7),
        (2, 2.0, 7),
    ]


def test_of_one_that_is_scored_each_stage_is_told_at_once() -> None:
    told = Told()
    told.node.expect(5, 1)
    told.ran(0, 1, [5], 0.0, partial=[5])
    assert told.work() == [], "more of its prompt follows"
    told.ran(0, 2, [5], 1.0)
    assert told.work() == [m.Passed(0, 5, 0.0, 2.0)], "from the begin of the first part"
    told.ran(1, 1, [5], 1.0, partial=[5])
    told.ran(1, 2, [5], 2.0)
    told.ran(2, 1, [5], 2.0, partial=[5])
    told.ran(2, 2, [5], 3.0)
    assert told.work() == [
        m.Passed(1, 5, 1.0, 3.0),
        batch(1, [5], 0.0, [5]),
        batch(2, [5], 1.0),
        m.Passed(2, 5, 2.0, 4.0),
    ], "the batch before what follows from its end"


def test_of_one_that_generates_all_stages_are_told_with_its_last_token() -> None:
    told = Told()
    told.node.expect(5, 3)
    for token in range(3):
        told.passes(token, [5, 9], 10.0 * token)
    answer = m.AnswerDone(5, [0.0, 1.0, 2.0], [21.0, 22.0, 23.0])
    assert told.work() == [batch(token, [5, 9], 10.0 * token) for token in range(3)] + [answer]


def test_training_and_stretches_that_end_no_pass_are_not_for_here() -> None:
    told = Told()
    training = m.WorkSpan(4, 0, "forward", [3], 0.0, 1.0, 2, -1, True)
    cut = m.WorkSpan(4, 0, "serve", [5], 1.0, 1.5, 2, 1, False, SHAPE)
    assert told.node.take([training, cut]) == [training, cut] and told.work() == []


def test_nothing_is_kept_of_those_that_ended_early() -> None:
    told = Told()
    for task in range(node_reports.LATE_REPORTS + 1):
        told.node.expect(task, 3)
        told.node.ended(task)
    told.passes(1, [0, 1], 0.0)
    told.passes(2, [0, 1], 5.0)
    told.passes(3, [0, 1], 10.0)
    assert [work.task for work in told.work() if isinstance(work, m.AnswerDone)] == [1], "0 is forgotten, 1 may be late"


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_in_whatever_order_stages_report_all_is_told_once(outputs: list[int], order: random.Random) -> None:
    told = Told()
    queues: list[list[tuple[int, int, list[int], float]]] = [[] for _ in range(STAGES)]
    for task, output in enumerate(outputs):
        told.node.expect(task, max(1, output))
    for token in range(max([1, *outputs])):
        here = [task for task, output in enumerate(outputs) if token < max(1, output)]
        for stage in range(STAGES):
            queues[stage].append((stage, token, here, float(10 * token + stage)))
    found: list[m.BatchRan | m.Passed | m.AnswerDone] = []
    while any(queues):
        queue = order.choice([queue for queue in queues if queue])
        told.ran(*queue.pop(0))
        found += told.work()
    assert sorted(work.batch for work in found if isinstance(work, m.BatchRan)) == list(range(max([1, *outputs])))
    generated = [task for task, output in enumerate(outputs) if output > 1]
    assert sorted(work.task for work in found if isinstance(work, m.AnswerDone)) == generated
    passed = [(work.task, work.stage) for work in found if isinstance(work, m.Passed)]
    assert sorted(passed) == [(t, s) for t, output in enumerate(outputs) if output <= 1 for s in range(STAGES)]
