"""When a run drains, why, and for how long, on a clock that stands still."""

import math
import signal
from pathlib import Path
from typing import Any, Literal

import pytest

from lemix_hpc.runtime.scheduler.allocation import JobTime
from lemix_hpc.runtime.scheduler.drain import KILLED_WITHIN_S, Drain, Reserve, means_preemption, signal_lead

BEGAN = 1000.0


class Watch:
    """What Slurm says, and how often it was asked beyond the usual."""

    def __init__(self, end: float, state: str = "RUNNING") -> None:
        self.known = JobTime(end, state)
        self.asked = 0

    def look_again(self) -> None:
        self.asked += 1


class Run:
    """A drain, its clock and its allocation."""

    def __init__(self, directory: Path, reserve: float | Literal["auto"] = "auto", end: float | None = None) -> None:
        self.time = BEGAN
        self.watch = None if end is None else Watch(end)
        self.stop = directory / "stop"
        watch: Any = self.watch
        self.drain = Drain(self.stop, reserve, watch, lambda: self.time)

    def at(self, time: float) -> tuple[str | None, bool]:
        """The reason to drain that it has at this time, and whether what has begun must be over."""
        self.time = time
        ending = self.drain.look()
        return (None if ending is None else ending.reason), self.drain.over


def test_nothing_ends_without_a_reason(tmp_path: Path) -> None:
    assert Run(tmp_path).at(1e9) == (None, False)
    assert Run(tmp_path, end=math.inf).at(1e9) == (None, False)


@pytest.mark.parametrize(("limit", "seconds"), [(120.0, 30.0), (240.0, 60.0), (3600.0, 120.0), (86400.0, 120.0)])
def test_auto_keeps_a_quarter_of_the_time_and_two_minutes_at_most(limit: float, seconds: float) -> None:
    assert Reserve("auto", BEGAN).seconds(BEGAN + limit) == seconds
    assert signal_lead("auto", limit) == seconds
    assert Reserve(300.0, BEGAN).seconds(BEGAN + limit) == 300.0


def test_the_door_closes_at_the_reserve_and_half_of_it_is_for_what_has_begun(tmp_path: Path) -> None:
    run = Run(tmp_path, end=BEGAN + 120)
    assert run.at(BEGAN + 89) == (None, False)
    assert run.at(BEGAN + 90) == ("time-limit", False)
    assert run.drain.ending.message == "30 s before the time limit"
    assert run.at(BEGAN + 104) == ("time-limit", False)
    assert run.at(BEGAN + 105) == ("time-limit", True)
    assert not run.drain.hopeless
    # What is left is for the report alone.
    run.time = BEGAN + 117
    assert run.drain.hopeless


def test_a_limit_that_is_shortened_counts(tmp_path: Path) -> None:
    run = Run(tmp_path, reserve=60.0, end=BEGAN + 7200)
    assert run.at(BEGAN + 100) == (None, False)
    run.watch.known = JobTime(BEGAN + 150, "RUNNING")
    assert run.at(BEGAN + 102) == ("time-limit", False)


def test_without_a_reserve_slurm_ends_the_run(tmp_path: Path) -> None:
    assert Run(tmp_path, reserve=0.0, end=BEGAN + 120).at(BEGAN + 119) == (None, False)


def test_a_user_asks_by_a_file_that_is_looked_for_every_second(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.at(BEGAN) == (None, False)
    run.stop.touch()
    assert run.at(BEGAN + 0.5) == (None, False)
    assert run.at(BEGAN + 1) == ("drained", False)
    assert run.at(BEGAN + 60) == ("drained", False)
    assert run.at(BEGAN + 61) == ("drained", True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_heard_at_once_and_slurm_is_asked_whether_it_kills_the_job(tmp_path: Path, number: int) -> None:
    run = Run(tmp_path, end=BEGAN + 7200)
    assert run.at(BEGAN) == (None, False)
    run.drain.heard(number)
    assert run.at(BEGAN + 0.1) == ("drained", False)
    assert run.watch.asked == 1
    run.watch.known = JobTime(BEGAN + 7200, "COMPLETING")
    assert run.at(BEGAN + 1.5) == ("drained", False)
    assert not run.drain.hopeless
    assert run.at(BEGAN + 1.5 + KILLED_WITHIN_S) == ("drained", True)
    assert run.at(BEGAN + 1.5 + 2 * KILLED_WITHIN_S) == ("drained", True)
    assert run.drain.hopeless


def test_usr2_long_before_the_end_is_a_preemption(tmp_path: Path) -> None:
    run = Run(tmp_path, end=BEGAN + 7200)
    run.drain.heard(signal.SIGUSR2)
    assert run.at(BEGAN + 100) == ("preempted", False)


def test_usr2_for_the_time_limit_may_come_a_minute_early_and_is_not_obeyed_before_the_reserve(tmp_path: Path) -> None:
    run = Run(tmp_path, end=BEGAN + 3600)
    run.time = BEGAN + 3600 - 180
    run.drain.heard(signal.SIGUSR2)
    assert run.at(BEGAN + 3600 - 180) == (None, False)
    assert run.at(BEGAN + 3600 - 121) == (None, False)
    assert run.at(BEGAN + 3600 - 120) == ("time-limit", False)


def test_usr2_is_all_there_is_where_slurm_does_not_tell_the_end(tmp_path: Path) -> None:
    run = Run(tmp_path, end=math.inf)
    run.drain.heard(signal.SIGUSR2)
    assert run.at(BEGAN + 100) == ("time-limit", False)
    assert run.at(BEGAN + 160) == ("time-limit", True)


@pytest.mark.parametrize(
    ("before_end", "preempted"), [(7200.0, True), (196.0, True), (195.0, False), (120.0, False), (10.0, False)]
)
def test_the_rule_of_usr2(before_end: float, preempted: bool) -> None:
    assert means_preemption(BEGAN, BEGAN + before_end, lead=120.0) is preempted


def test_the_first_reason_stays(tmp_path: Path) -> None:
    run = Run(tmp_path, end=BEGAN + 120)
    run.stop.touch()
    assert run.at(BEGAN + 1)[0] == "drained"
    assert run.at(BEGAN + 100)[0] == "drained"
