"""What an attempt goes on from, by the journals of those before it."""

from pathlib import Path

import pytest

from lemix_hpc.records.attempts import Attempt, AttemptEnd, EndReason, claim
from lemix_hpc.records.inheritance import NOTHING, Inheritance, inherit
from lemix_hpc.records.journal import Accepted, Answered, Ended, GroupCut, Placed, Record, Stepped, Trained
from lemix_hpc.records.parts import Reach
from lemix_hpc.records.schema import ServedTask, TrainedTask
from tests.records.attempt_files import newest_part, outcomes, start, write_all


class Run:
    """Attempts one after the other, each with the records of its journal."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def attempt(
        self, *records: Record, versions: dict[int, int] | None = None, end: EndReason | None = None
    ) -> Inheritance:
        """Go on from the versions of a checkpoint, and be cut off. Returns what the attempt went on from."""
        inherited = inherit(self.path, versions or {})
        attempt = claim(self.path)
        start(attempt, inherited)
        write_all(attempt, inherited, records)
        if end is not None:
            attempt.end(AttemptEnd(end, "", 0.0))
        return inherited


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def served(id: str, number: int | None, finished: float = 1.0) -> Ended:
    return Ended(ServedTask(id, "finished", 0.5, 3, finished=finished, number=number))


def trained(id: str, node: int, step: int) -> Trained:
    return Trained(TrainedTask(id, "finished", 0.5, 8, node=node, finished=1.0, step=step))


def cut(group: int) -> GroupCut:
    return GroupCut(group, (f"t{group}",), (64,), (0, 0), ())


def test_the_first_attempt_goes_on_from_nothing(run: Run) -> None:
    assert run.attempt() is NOTHING


def test_requests_without_an_outcome_are_waiting(run: Run) -> None:
    run.attempt(Accepted(0, "a", 0.5, 3), Accepted(4, "b", 0.75, 3), Placed(0, 0), Placed(4, 1), served("a", 0, 2.5))
    inherited = run.attempt(served("b", 4))
    assert [task.id for task in inherited.served] == ["a"]
    assert inherited.waiting == {4: Accepted(4, "b", 0.75, 3)}
    assert (inherited.next_number, inherited.clock) == (5, 2.5)
    again = run.attempt()
    assert [task.id for task in again.served] == ["b"] and not again.waiting
    assert (again.tally.total, again.tasks) == (1, Reach(1, 1)), "the first line is in the file of the second attempt"
    assert [task.id for task in outcomes(run.path)] == ["a", "b"]


def test_a_request_that_never_became_a_task_has_its_outcome_too(run: Run) -> None:
    run.attempt(Ended(ServedTask("long", "rejected", 0.5, 9999)), Ended(ServedTask("longer", "rejected", 0.5, 9999)))
    assert [task.id for task in run.attempt().served] == ["long", "longer"]


def test_what_was_answered_has_its_outcome_and_is_known_again(run: Run) -> None:
    headers = (("content-type", "application/json"),)
    mine = Answered(0, "mine", "d0", 2.0, 200, headers, b"{}")
    bad = Answered(1, "bad", "d1", 3.0, 400, headers, b"no")
    run.attempt(Accepted(0, "mine", 0.5, 3, "d0"), Accepted(1, "bad", 0.75, 4, "d1"), mine, served("mine", 0, 2.0), bad)
    inherited = run.attempt()
    assert inherited.answers == [mine, bad] and not inherited.waiting
    assert inherited.served[1:] == [ServedTask("bad", "rejected", 0.75, 4, finished=3.0, number=1)]
    assert inherited.clock == 3.0
    again = run.attempt()
    assert (again.answers, again.served) == (inherited.answers, [])
    assert outcomes(run.path) == inherited.served


def test_training_behind_the_checkpoint_is_done_again(run: Run) -> None:
    steps = [Stepped(0, (group,), group + 1, 9.0) for group in range(4)]
    tasks = [trained(f"t{group}", 0, group + 1) for group in range(4)]
    run.attempt(*(cut(group) for group in range(6)), *steps, *tasks)
    inherited = run.attempt(steps[2], tasks[2], versions={0: 2})
    assert [task.id for task in inherited.trained] == ["t0", "t1"]
    assert (inherited.steps, inherited.done, inherited.versions) == (2, frozenset({0, 1}), {0: 2})
    assert [each.group for each in inherited.cuts] == list(range(6))
    again = run.attempt(versions={0: 3})
    assert [task.id for task in outcomes(run.path)] == ["t0", "t1", "t2"], "the first attempt's t2 and t3 were dropped"
    assert [task.id for task in again.trained] == ["t2"] and again.trained_before == 2
    assert again.done == frozenset({0, 1, 2})


def test_each_node_is_cut_back_to_its_own_version(run: Run) -> None:
    run.attempt(
        cut(0), cut(1), Stepped(0, (0,), 1, 1.0), Stepped(1, (1,), 1, 1.0), trained("t0", 0, 1), trained("t1", 1, 1)
    )
    assert run.attempt(versions={1: 1}).done == frozenset({1})


def test_without_weights_every_step_counts(run: Run) -> None:
    run.attempt(cut(0), Stepped(0, (0,), 1, 1.0), trained("t0", 0, 1))
    assert inherit(run.path, None).versions == {0: 1}
    assert inherit(run.path, None).done == frozenset({0})


def test_a_step_tells_of_micro_batches_whose_records_were_lost(run: Run) -> None:
    run.attempt(cut(0), Stepped(1, (0,), 3, 9.0))
    (task,) = run.attempt(versions={1: 3}).trained
    assert task == TrainedTask("t0", "finished", 9.0, 64, 1, finished=9.0, step=3)


def test_what_was_written_behind_the_fence_does_not_count(run: Run) -> None:
    run.attempt(Accepted(0, "a", 0.5, 3))
    run.attempt()
    # The ranks of the first attempt are still there, on a host that Slurm has lost.
    path = newest_part(Attempt(run.path / "attempts" / "0"))
    written = path.read_bytes()
    late = Run(run.path / "late")
    late.path.mkdir()
    late.attempt(Accepted(0, "a", 0.5, 3), served("a", 0))
    content = newest_part(Attempt(late.path / "attempts" / "0")).read_bytes()
    assert content.startswith(written)
    path.write_bytes(content)
    assert list(inherit(run.path, {}).waiting) == [0]


@pytest.mark.parametrize(
    ("ends", "poison"),
    [
        (["error", "error"], {1}),
        (["out-of-memory", "error"], {1}),
        (["killed", "error"], set()),
        (["error", None], set()),
    ],
)
def test_what_was_on_a_node_at_two_errors_in_a_row_is_not_tried_again(
    run: Run, ends: list[EndReason | None], poison: set[int]
) -> None:
    run.attempt(Accepted(0, "a", 0, 3), Accepted(1, "b", 0, 3), Placed(0, 0), Placed(1, 0), end=ends[0])
    run.attempt(Placed(0, 0), Placed(1, 0), served("a", 0), end=ends[1])
    assert inherit(run.path, {}).poison == poison


def test_damage_is_named(run: Run) -> None:
    run.attempt(Placed(0, 0), Placed(1, 0))
    path = newest_part(Attempt(run.path / "attempts" / "0"))
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    assert "attempts/0/journal.000001.bin" in inherit(run.path, {}).damage[0]
