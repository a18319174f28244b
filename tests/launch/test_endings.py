"""Why an attempt ended, from what its ranks and their launcher left."""

from pathlib import Path

import msgspec
import pytest

from lemix_hpc.launch.endings import abandoned, fruitless, is_mistake, killed_by_slurm, settle
from lemix_hpc.records.attempts import Attempt, AttemptEnd, EndReason, attempts, claim
from lemix_hpc.records.schema import Progress

KILLED = "srun: error: n2: task 4: Killed\n"
EARLY = "srun: error: n1: task 0: Exited with exit code 75\n"


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return claim(tmp_path)


def ended(attempt: Attempt, reason: EndReason) -> None:
    attempt.end(AttemptEnd(reason, f"said {reason}", 1.0))


@pytest.mark.parametrize("reason", ["finished", "drained", "unsaved", "time-limit", "preempted"])
def test_the_scheduler_rank_knows_best(attempt: Attempt, reason: EndReason) -> None:
    ended(attempt, reason)
    assert settle(attempt, "", 0, None).message == f"said {reason}"


@pytest.mark.parametrize(
    ("printed", "reason"),
    [(KILLED, "killed"), ("srun: error: Node failure on n2\n", "node-failure"), ("oom-kill event\n", "out-of-memory")],
)
def test_a_dead_rank_explains_an_attempt_that_says_nothing(attempt: Attempt, printed: str, reason: str) -> None:
    assert settle(attempt, printed, 137, None).reason == reason
    assert attempt.ended.reason == reason


def test_a_rank_that_died_explains_the_signal_that_the_others_got(attempt: Attempt) -> None:
    ended(attempt, "drained")
    assert settle(attempt, KILLED, 137, None).reason == "killed"


def test_an_end_before_the_beginning_is_no_death(attempt: Attempt) -> None:
    ended(attempt, "drained")
    assert settle(attempt, EARLY, 75, None).reason == "drained"


def test_a_failure_is_quoted_and_a_mistake_told_from_others(attempt: Attempt) -> None:
    attempt.failure.write_text("rank 2 (node 0, stage 1) failed: RuntimeError: no\n")
    assert settle(attempt, "", 1, None) == attempt.ended
    assert attempt.ended.message == "rank 2 (node 0, stage 1) failed: RuntimeError: no"
    assert not is_mistake(attempt)
    # Its MPI could not end the others.
    assert settle(attempt, "srun: error: n1: task 2: Alarm clock\n", 142, None).reason == "error"
    attempt.failure.write_text("rank 0 (node 0, leader) failed: UserError: engine.device: no GPU\n")
    assert is_mistake(attempt)
    # Others of its host are killed for it.
    assert settle(attempt, KILLED, 1, None).message.endswith("engine.device: no GPU")


def test_a_rank_killed_from_outside_goes_before_what_the_others_say_of_it(attempt: Attempt) -> None:
    attempt.failure.write_text("rank 0 (node 0, leader) failed: RuntimeError: stage 1 has ended\n")
    assert settle(attempt, KILLED, 137, None).message == "rank 4 on n2 was killed by signal 9 (SIGKILL)"


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        ("", "no rank left a word"),
        (
            "srun: hello\nsrun: error: Unable to create step for job 15\n",
            "srun: error: Unable to create step for job 15",
        ),
    ],
)
def test_only_the_launcher_has_something_to_say(attempt: Attempt, printed: str, said: str) -> None:
    assert settle(attempt, printed, 3, None).message == f"the launcher ended with status 3: {said}"


@pytest.mark.parametrize(
    ("due", "reason"),
    [
        ("", "cancelled"),
        (" DUE TO PREEMPTION", "preempted"),
        (" DUE TO TIME LIMIT", "time-limit"),
        (" DUE TO NODE FAILURE", "node-failure"),
        (" DUE TO JOB REQUEUE", "preempted"),
    ],
)
def test_slurm_says_why_it_ends_a_job(attempt: Attempt, due: str, reason: str) -> None:
    printed = f"slurmstepd: error: *** STEP 4.0 ON n1 CANCELLED AT 2026-11-25T20:13:31{due} ***\n"
    assert killed_by_slurm(printed).reason == reason
    ended(attempt, "drained")
    assert settle(attempt, printed, 1, killed_by_slurm(printed)).reason == reason


def test_slurm_does_not_take_back_what_was_done_in_time(attempt: Attempt) -> None:
    ended(attempt, "finished")
    assert settle(attempt, "", 0, killed_by_slurm("")).reason == "finished"


def test_an_attempt_that_nobody_saw_end_is_explained_by_the_accounting(attempt: Attempt) -> None:
    assert abandoned(attempt, ["NODE_FAIL"]).reason == "node-failure"
    assert abandoned(attempt, ["NODE_FAIL", "PREEMPTED"]).reason == "preempted"
    assert abandoned(attempt, ["REQUEUED"]).reason == abandoned(attempt, []).reason == "node-failure"
    attempt.failure.write_text("rank 1 failed: RuntimeError: x\n")
    assert abandoned(attempt, []).reason == "error"


def test_attempts_without_progress_are_counted_until_one_makes_some(tmp_path: Path) -> None:
    def add(done: int, reason: EndReason) -> int:
        attempt = claim(tmp_path)
        (attempt.path / "progress.json").write_bytes(msgspec.json.encode(Progress("running", served=done)))
        ended(attempt, reason)
        return fruitless(attempts(tmp_path), 0)

    assert add(5, "killed") == 0
    assert add(5, "killed") == 1
    assert add(5, "preempted") == 1, "which is nobody's fault"
    assert add(0, "time-limit") == 2
    assert fruitless(attempts(tmp_path), 3) == 1, "before the user started it again"
    assert add(6, "error") == 0
