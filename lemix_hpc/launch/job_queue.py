"""What Slurm says of a job that waits or runs: why it waits, behind how many, when it starts, and when its time is over."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from lemix_hpc.launch.slurm_job import ask
from lemix_hpc.runtime.scheduler.allocation import parse_time


@dataclass(frozen=True, slots=True)
class JobInQueue:
    """`reason`: why it waits, in Slurm's word. `position` among the `waiting` jobs of its partition that one can see, the first
    being 1; None if it is not there. `starts`: when Slurm expects that; `ends`: its time limit; seconds since the epoch, inf if
    not known."""

    reason: str | None = None
    partition: str = ""
    position: int | None = None
    waiting: int = 0
    starts: float = math.inf
    ends: float = math.inf


def look_up(job: str) -> JobInQueue | None:
    """Ask squeue, twice for a job that waits. None if it does not know the job, or does not answer."""
    # Users may have set another format of times; a reason may hold any character.
    query = ("squeue", "--noheader", "--jobs", job, "--format", "%T|%P|%S|%e|%r")
    state, *fields = ask("env", "SLURM_TIME_FORMAT=standard", *query).partition("\n")[0].split("|", 4)
    if len(fields) != len("PSer"):
        return None
    partition, starts, ends, reason = (field.strip() for field in fields)
    if state != "PENDING":
        return JobInQueue(partition=partition, ends=parse_time(ends))
    position, waiting = _position(job, partition)
    expected = parse_time(starts)
    # One that has passed is of the last time that Slurm planned.
    return JobInQueue(reason, partition, position, waiting, expected if expected > time.time() else math.inf)


def _position(job: str, partition: str) -> tuple[int | None, int]:
    """Which of how many; jobs of the highest priority come first."""
    query = ("--states", "PENDING", "--partition", partition, "--sort", "-p,i", "--format", "%i")
    jobs = [line.strip().partition("_")[0] for line in ask("squeue", "--noheader", *query).splitlines()]
    own = job.partition("_")[0]
    return (jobs.index(own) + 1 if own in jobs else None), len(jobs)
