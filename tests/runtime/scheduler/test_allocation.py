"""When Slurm ends a job, from its answers."""

import math
import time
from collections.abc import Callable
from datetime import datetime

import pytest

from lemix_hpc.runtime.scheduler.allocation import AllocationWatch, JobTime, ask_slurm, parse_answer, parse_time

NOON = "2026-11-25T12:00:00"
SECONDS = datetime(2026, 11, 25, 12).timestamp()


@pytest.mark.parametrize(
    ("answer", "known"),
    [
        (f"{NOON}|RUNNING\n", JobTime(SECONDS, "RUNNING")),
        ("N/A|PENDING\n", JobTime(math.inf, "PENDING")),
        ("NONE|RUNNING\n", JobTime(math.inf, "RUNNING")),
        ("Unknown|COMPLETING", JobTime(math.inf, "COMPLETING")),
        ("", JobTime()),
    ],
)
def test_what_squeue_says(answer: str, known: JobTime) -> None:
    assert parse_answer(answer) == known


def test_an_end_may_be_a_number_of_seconds_or_absent() -> None:
    assert parse_time("1795637255") == 1795637255.0
    assert parse_time("") == parse_time("UNLIMITED") == math.inf


@pytest.mark.parametrize(
    ("state", "ending"), [("RUNNING", False), ("", False), ("COMPLETING", True), ("CANCELLED", True)]
)
def test_a_job_that_does_not_run_any_more_is_ending(state: str, ending: bool) -> None:
    assert JobTime(state=state).ending is ending


def test_a_host_without_squeue_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert ask_slurm("1") == JobTime()


def until(found: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not found():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_watch_keeps_what_it_knows_when_no_answer_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1000")
    answers = [JobTime(), JobTime(900.0, "RUNNING"), JobTime(), JobTime(math.inf, "RUNNING")]
    given: list[JobTime] = []

    def ask(job: str) -> JobTime:
        assert job == "7"
        given.append(answers[min(len(given), len(answers) - 1)])
        return given[-1]

    watch = AllocationWatch("7", ask)
    try:
        until(lambda: len(given) == 1)
        assert watch.known == JobTime(1000.0)
        watch.look_again()
        until(lambda: watch.known == JobTime(900.0, "RUNNING"))
        watch.look_again()
        until(lambda: len(given) >= 3)
        assert watch.known == JobTime(900.0, "RUNNING")
        watch.look_again()
        # A limit may be taken away, too.
        until(lambda: watch.known == JobTime(math.inf, "RUNNING"))
    finally:
        watch.close()
