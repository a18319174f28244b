"""The live view where there is no screen: what is new, once, and figures every half minute."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lemix_hpc.cli.live.lines import FIGURES_EVERY_S, Lines
from lemix_hpc.cli.live.picture import Picture
from lemix_hpc.launch.job_queue import JobInQueue
from lemix_hpc.policy.drift import Drift
from lemix_hpc.records.attempts import AttemptEnd
from lemix_hpc.records.schema import Progress


class Run:
    """A run that is looked at four times a second; `says` moves the clock and returns what is said in that time."""

    def __init__(self) -> None:
        self.lines = Lines()
        self.now = 1_800_000_000.0

    def says(self, state: str, progress: Progress | None, *, seconds: float = 0.25, **given: Any) -> list[str]:
        told = []
        for _ in range(round(4 * seconds)):
            given = {"ends": (None,), "job_id": "4711"} | given
            told += self.lines.news(Picture("toy", state, 1_800_000_000.0, self.now, progress, **given))
            self.now += 0.25
        return told


def running(elapsed_s: float, **given: Any) -> Progress:
    return Progress(
        "running", elapsed_s=elapsed_s, requests=100, served=int(elapsed_s), address="http://node7:80", **given
    )


def test_waiting_is_told_when_it_changes_and_not_again() -> None:
    run = Run()
    queue = JobInQueue("Priority", "gpu", 3, 12)
    assert run.says("PENDING", None, job=queue, ends=(), seconds=120.0) == [
        "pending: Priority, place 3 of 12 that wait in gpu, job 4711",
        "jobs of higher priority come first; a shorter `cluster.time` may let it in earlier",
    ]
    nearer = JobInQueue("Priority", "gpu", 2, 12)
    [told] = run.says("PENDING", None, job=nearer, ends=(), seconds=60.0)
    assert told == "pending: Priority, place 2 of 12 that wait in gpu, for 2:00"
    assert run.says("RUNNING", None, seconds=60.0) == ["starting the ranks of attempt 0"]


def test_engines_are_counted_now_and_then() -> None:
    run = Run()
    told = []
    for built in range(64):
        building = Progress("starting", message="building the engines", since=run.now, built=built, engines=64)
        told += run.says("RUNNING", building, seconds=1.0)
    assert told == [
        "starting: building the engines: 0 of 64, job 4711",
        "starting: building the engines: 30 of 64",
        "starting: building the engines: 60 of 64",
    ]


def test_a_run_says_its_figures_every_half_minute_and_everything_else_once() -> None:
    run = Run()
    drift = [Drift(0, "serve", 2.0, since_s=40.0)]
    told = []
    for second in range(101):
        told += run.says("RUNNING", running(second, drift=drift if 40 <= second < 80 else []), seconds=1.0)
    assert told == [
        "running, job 4711",
        "OpenAI API at http://node7:80/v1",
        "30 s: serving: served 30/100, 0 under way",
        "alarm: drift: stage 0 serve takes 2 x its predicted time",
        "1:00: serving: served 60/100, 0 under way",
        "over: drift: stage 0 serve takes 2 x its predicted time",
        "1:30: serving: served 90/100, 0 under way",
    ]
    end = AttemptEnd("finished", "all work is done", run.now)
    over = Progress("finished", elapsed_s=100.0, requests=100, served=100)
    assert run.says("RUNNING", over) == ["ending: writing its report"]
    assert run.says("RUNNING", over, ends=(end,)) == [], "before the supervisor has gone, too"
    assert run.says("COMPLETED", over, ends=(end,)) == ["1:40: serving: served 100/100", "completed"]


def test_an_alarm_is_the_same_when_its_figure_changes() -> None:
    run = Run()
    told = []
    for second in range(20):
        told += run.says("RUNNING", running(second, drift=[Drift(0, "serve", 2.0 + second, 0.0)], skipped=second))
    assert Counter(line.split(":")[0] for line in told if "alarm" in line) == {"alarm": 2}


def test_what_an_attempt_said_is_neither_repeated_nor_taken_back_while_the_run_waits_for_the_next_one() -> None:
    run = Run()
    alarmed = running(5.0, drift=[Drift(0, "serve", 2.0, 0.0)])
    assert "alarm: drift: stage 0 serve takes 2 x its predicted time" in run.says("RUNNING", alarmed)
    ends = (AttemptEnd("preempted", "Slurm's warning", run.now),)
    assert run.says("PENDING", alarmed, ends=ends, seconds=FIGURES_EVERY_S) == [
        "attempt 0 ended: preempted: Slurm's warning",
        "pending, attempt 1, before it preempted",
    ]
    assert run.says("RUNNING", alarmed, ends=(*ends, None), earlier=True) == ["starting the ranks of attempt 1"]


def test_attempts_that_ended_are_told_once_and_what_follows() -> None:
    run = Run()
    assert run.says("RUNNING", running(5.0), seconds=1.0)[0] == "running, job 4711"
    ends = (AttemptEnd("killed", "rank 2 was killed by signal 9\nand so on", run.now), None)
    assert run.says("RUNNING", running(5.0), ends=ends[:1]) == ["attempt 0 has ended: killed"]
    assert run.says("RUNNING", running(5.0), ends=ends, earlier=True, seconds=FIGURES_EVERY_S) == [
        "attempt 0 ended: killed: rank 2 was killed by signal 9",
        "starting the ranks of attempt 1, attempt 1, before it killed",
    ]
    assert run.says("RUNNING", running(6.0), ends=ends) == ["running"]
    failed = (*ends[:1], AttemptEnd("error", "rank 1 failed", run.now))
    assert run.says("FAILED", running(6.0), ends=failed) == [
        "6 s: serving: served 6/100",
        "failed: error: rank 1 failed",
    ]
