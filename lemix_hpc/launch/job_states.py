"""The states of Slurm jobs, of many at once: the controller has more to do than to answer for each of them."""

from __future__ import annotations

from collections.abc import Collection

from lemix_hpc.launch.slurm_job import ask, controller_answers


def job_states(jobs: Collection[str]) -> dict[str, str]:
    """The states of those jobs that Slurm knows, in its words.

    squeue knows jobs that wait or run, sacct those that ended; where accounting is off, scontrol knows them for minutes.
    """
    states: dict[str, str] = {}
    for query in (_squeue, _sacct, _scontrol):
        unknown = sorted(set(jobs) - states.keys())
        if unknown:
            states |= query(unknown)
    return states


def pending_reasons(jobs: Collection[str]) -> dict[str, str]:
    """Why those of the jobs wait that do, in Slurm's words."""
    if not jobs:
        return {}
    query = ("--states", "PENDING", "--array", "--jobs", ",".join(sorted(jobs)), "--format", "%i|%r")
    rows = (line.partition("|") for line in ask("squeue", "--noheader", *query).splitlines())
    return {job: reason for job, _, reason in rows if reason}


def _squeue(jobs: list[str]) -> dict[str, str]:
    return _columns(ask("squeue", "--noheader", "--array", "--jobs", ",".join(jobs), "--format", "%i|%T"))


def _sacct(jobs: list[str]) -> dict[str, str]:
    command = ("sacct", "-X", "-D", "--noheader", "--parsable2", "--format", "JobID,State", "--jobs", ",".join(jobs))
    return _columns(ask(*command))


def _scontrol(jobs: list[str]) -> dict[str, str]:
    """Of one after the other, as it takes no list; but none while it would wait for the controller for each of them."""
    states: dict[str, str] = {}
    if not controller_answers():
        return states
    for job in jobs:
        for word in ask("scontrol", "--oneliner", "show", "job", job).split():
            if word.startswith("JobState="):
                states[job] = word.removeprefix("JobState=")
    return states


def _columns(answer: str) -> dict[str, str]:
    states = {}
    for line in answer.splitlines():
        job, _, state = line.partition("|")
        if state:
            # A job that was requeued has a line for each time it ran; the last one counts. sacct has `CANCELLED by 1000`.
            states[job] = state.split()[0].rstrip("+")
    return states
