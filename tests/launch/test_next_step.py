"""What follows an attempt."""

from typing import Any

import pytest

from lemix_hpc.launch.next_step import Next, Situation, decide
from lemix_hpc.records.attempts import AttemptEnd, EndReason


def step(reason: EndReason, **situation: Any) -> Next:
    return decide(Situation(AttemptEnd(reason, "why", 0.0), **situation))[0]


@pytest.mark.parametrize("reason", ["finished", "drained", "cancelled"])
def test_a_run_that_is_over_stays_over(reason: EndReason) -> None:
    assert step(reason, requeue=True, renewed=True) is Next.DONE


@pytest.mark.parametrize("reason", ["time-limit", "preempted"])
def test_time_that_is_over_is_asked_for_again_where_that_is_allowed(reason: EndReason) -> None:
    assert step(reason, requeue=True) is Next.REQUEUE
    assert step(reason, requeue=False) is Next.DONE
    assert step(reason, requeue=True, renewed=True) is Next.DONE, "the next job waits already"
    assert step(reason, requeue=True, stopped=True) is Next.DONE
    assert step(reason, requeue=True, ending=True) is Next.DONE, "Slurm requeues what it preempts itself"


def test_a_job_whose_time_never_suffices_is_given_up() -> None:
    assert step("time-limit", requeue=True, fruitless=3, restarts=3) is Next.REQUEUE
    assert step("time-limit", requeue=True, fruitless=4, restarts=3) is Next.GIVE_UP


@pytest.mark.parametrize("reason", ["killed", "out-of-memory", "error"])
def test_crashes_are_restarted_as_long_as_it_helps(reason: EndReason) -> None:
    assert step(reason, fruitless=0) is Next.RESTART
    assert step(reason, fruitless=0, restarts=0) is Next.GIVE_UP
    assert step(reason, fruitless=3, restarts=3, requeue=True) is Next.RESTART
    assert step(reason, fruitless=4, restarts=3, requeue=True) is Next.GIVE_UP
    assert step(reason, mistake=True) is Next.GIVE_UP
    assert step(reason, stopped=True) is Next.GIVE_UP
    assert step(reason, ending=True) is Next.DONE


def test_what_could_not_be_saved_is_a_failure_and_no_reason_to_train_it_again_at_once() -> None:
    assert step("unsaved", requeue=True, renewed=True, restarts=3) is Next.GIVE_UP


def test_an_allocation_that_lost_a_host_is_left() -> None:
    assert step("node-failure", requeue=True) is Next.REQUEUE
    assert step("node-failure", renewed=True) is Next.DONE
    assert step("node-failure") is Next.GIVE_UP
