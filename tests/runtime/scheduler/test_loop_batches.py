"""What becomes of the batches that leaders tell of: records, and events of the policy."""

from __future__ import annotations

import pytest

from lemix_hpc.policy.events import AnswerPassed, BatchMeasured, StageFinished, TaskFinished
from lemix_hpc.records.sampling import Sampling
from lemix_hpc.records.schema import Span
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.workload.tasks import Request
from tests.runtime.scheduler.conftest import SHAPE, Start, done, ran


@pytest.mark.parametrize(
    ("spans", "starts"),
    [
        ("all", [0.5, 0.75, 0.875, 1.125, 10.0, 10.25]),
        ("sampled", [0.5, 0.75, 0.875, 10.0, 10.25]),
        ("off", []),
    ],
)
def test_the_policy_hears_of_all_work_and_what_is_written_down_is_chosen(
    start: Start, spans: Sampling, starts: list[float]
) -> None:
    rank = start(Request("r0", 0.0, 8, 3), spans=spans)
    rank.turn(0.0)
    for begin in (0.5, 0.875, 10.0):
        rank.turn(begin + 0.5, ran([0], begin, begin + 0.25))
    assert [span.start for span in rank.spans()] == starts
    assert rank.events()[1:] == [BatchMeasured(begin + 0.5, 0, SHAPE, (0.25, 0.25)) for begin in (0.5, 0.875, 10.0)]


def test_what_a_stage_reports_is_written_down_and_told_to_the_policy(start: Start) -> None:
    rank = start(Request("r0", 0.0, 8, 2))
    rank.turn(0.0)
    assert rank.turn(2.0, ran([0], 0.25, 1.0))
    through = m.AnswerDone(0, [0.25, 1.0], [2.5, 3.0])
    rank.turn(3.0, m.NodeReport(0, [*ran([0], 2.0, 2.5).work, through]))
    assert rank.spans() == [
        Span(0, 0, "r0", "serve", 0.25, 1.0, 3, 7),
        Span(0, 1, "r0", "serve", 1.0, 1.75, 3, 7),
        Span(0, 0, "r0", "serve", 2.0, 2.5, 3, 7),
        Span(0, 1, "r0", "serve", 2.5, 3.0, 3, 7),
    ]
    assert rank.events()[1:] == [
        BatchMeasured(2.0, 0, SHAPE, (0.75, 0.75)),
        BatchMeasured(3.0, 0, SHAPE, (0.5, 0.5)),
        AnswerPassed(3.0, 0, 0, (0.25, 1.0), (2.5, 3.0)),
    ]


def test_a_report_that_comes_after_the_outcome_still_has_a_name_and_is_told(start: Start) -> None:
    rank = start(Request("r0", 0.0, 8, 2))
    rank.turn(0.0)
    through = m.AnswerDone(0, [0.0, 0.5], [1.5, 2.0])
    rank.turn(2.0, done(0, 2.0, [5, 6]), m.NodeReport(0, [*ran([0], 1.0, 1.5).work, through]))
    assert [span.task for span in rank.spans()] == ["r0", "r0"]
    assert rank.events()[1:] == [
        TaskFinished(2.0, 0, 0, output=2),
        BatchMeasured(2.0, 0, SHAPE, (0.5, 0.5)),
        AnswerPassed(2.0, 0, 0, (0.0, 0.5), (1.5, 2.0)),
    ]
    assert rank.loop.finished


def test_every_request_of_a_batch_has_a_span_and_an_event(start: Start) -> None:
    rank = start(Request("r0", 0.0, 8, 0), Request("r1", 0.0, 8, 0))
    rank.turn(0.0)
    rank.turn(0.5, m.NodeReport(0, [m.Passed(0, task, 0.0, 0.5) for task in (0, 1)]))
    assert rank.events()[2:] == [StageFinished(0.5, 0, 0, task, 0.0, 0.5) for task in (0, 1)]
    rank.turn(1.0, ran([0, 1], 0.0, 0.5))
    assert [(span.stage, span.task) for span in rank.spans()] == [(0, "r0"), (0, "r1"), (1, "r0"), (1, "r1")]
    assert rank.events()[4:] == [BatchMeasured(1.0, 0, SHAPE, (0.5, 0.5))], "the batch is one"
