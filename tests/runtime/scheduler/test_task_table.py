"""Tasks by their number, and the records that they end in."""

import pytest

from lemix_hpc.engines.protocol import MicroBatch
from lemix_hpc.policy.events import Place
from lemix_hpc.records.schema import Outcome, ServedTask, TrainedTask
from lemix_hpc.runtime.scheduler.task_table import LATE_REPORTS, ServingTask, TaskNames, TrainingTask
from lemix_hpc.runtime.transport.messages import RequestDone
from lemix_hpc.workload.tasks import Request


def request(output: int) -> Request:
    return Request("r0", 0.5, 8, output)


def placed(output: int = 0) -> ServingTask:
    return ServingTask(request(output), Place(3, 1, eligible=0.75, response=2.0, key=0.75))


def done(output: list[int], scored: int) -> RequestDone:
    return RequestDone(3, 1, 1.0, 2.0, 6.5 if scored else 0.0, scored, output, (4, 5))


# Names


def test_a_task_keeps_its_name_for_the_reports_that_come_after_its_outcome() -> None:
    names = TaskNames()
    for number in range(LATE_REPORTS + 2):
        names[number] = f"r{number}"
    for number in range(1, LATE_REPORTS + 1):
        names.retire(number)
    assert names[1] == "r1" and len(names) == LATE_REPORTS + 2
    names.retire(LATE_REPORTS + 1)
    assert 1 not in names, "the one that ended first goes first"
    assert names[0] == "r0" and names[2] == "r2", "one under way stays, however long it takes"


# Requests


def test_a_rejected_request_was_nowhere() -> None:
    assert ServingTask(request(2)).rejected() == ServedTask("r0", "rejected", 0.5, 8)
    assert ServingTask(request(2)).rejected(7) == ServedTask("r0", "rejected", 0.5, 8, number=7)


def test_a_scored_request_has_its_likelihood_and_a_generated_one_its_tokens() -> None:
    scored = placed().finished(done([], scored=7), "finished")
    assert (scored.nll, scored.scored_tokens, scored.output) == (6.5, 7, [])
    generated = placed(2).finished(done([11, 12], scored=0), "finished")
    assert (generated.nll, generated.scored_tokens, generated.output) == (None, 0, [11, 12])
    for record in (scored, generated):
        assert (record.node, record.placed, record.predicted_response_s, record.number) == (1, 0.75, 2.0, 3)
        assert (record.first_token, record.finished, record.versions) == (1.0, 2.0, (4, 5))


def test_forecasts_of_tokens_are_kept_beside_that_of_the_response() -> None:
    task = ServingTask(request(2), Place(3, 1, 0.75, 2.0, 0.75, first_token=0.5, token=0.25))
    record = task.finished(done([11, 12], scored=0), "finished")
    assert (record.predicted_ttft_s, record.predicted_tpot_s) == (0.5, 0.25)


@pytest.mark.parametrize("outcome", ["lost", "aborted", "rejected"])
def test_what_a_node_never_worked_on_has_no_first_token_and_no_versions(outcome: Outcome) -> None:
    record = placed(2).finished(done([], scored=0), outcome)
    assert (record.outcome, record.first_token, record.versions, record.finished) == (outcome, None, None, 2.0)


def test_what_was_cut_short_keeps_what_it_had() -> None:
    record = placed(9).finished(done([11], scored=0), "aborted")
    assert (record.output, record.first_token, record.versions) == ([11], 1.0, (4, 5))


# Micro-batches


def test_a_micro_batch_is_recorded_with_its_place_and_its_step() -> None:
    task = TrainingTask("t4", MicroBatch(9, 2, 0, 1, 3, 16, b"", b""), ("s1", "s2"))
    task.place, task.placed = Place(9, 1, eligible=1.0, response=4.0, key=0.0), 1.5
    task.loss, task.finished_at = 2.5, 6.0
    assert task.record(8) == TrainedTask(
        "t4",
        "finished",
        eligible=1.0,
        tokens=48,
        node=1,
        placed=1.5,
        finished=6.0,
        loss=2.5,
        step=8,
        number=9,
        samples=["s1", "s2"],
    )
