"""What Slurm says of a job that waits or runs."""

from __future__ import annotations

import math
import time

import pytest

from lemix_hpc.launch.job_queue import JobInQueue, look_up
from tests.launch.conftest import FakeSlurm


@pytest.fixture
def squeue(fake_slurm: FakeSlurm) -> FakeSlurm:
    """With an answer for one job in `job`, and the ids of all that wait in `queue`."""
    (fake_slurm.directory / "job").touch()
    (fake_slurm.directory / "queue").touch()
    script = fake_slurm.directory / "squeue"
    script.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *--states*) cat {fake_slurm.directory}/queue;; *) cat {fake_slurm.directory}/job;; esac\n'
    )
    return fake_slurm


def says(squeue: FakeSlurm, job: str, queue: str = "") -> None:
    (squeue.directory / "job").write_text(f"{job}\n" if job else "")
    (squeue.directory / "queue").write_text(queue)


def at(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(moment))


def test_a_job_that_waits_has_a_reason_a_place_and_an_expected_start(squeue: FakeSlurm) -> None:
    soon = float(int(time.time()) + 600)
    says(squeue, f"PENDING|gpu|{at(soon)}|{at(soon + 60)}|Resources", "11\n9_[0-3]\n12\n")
    assert look_up("12") == JobInQueue("Resources", "gpu", 3, 3, soon)
    says(squeue, "PENDING|gpu|N/A|N/A|Nodes required for job are DOWN | DRAINED", "9_[0-3]\n11\n")
    assert look_up("9_1") == JobInQueue("Nodes required for job are DOWN | DRAINED", "gpu", 1, 2)
    says(squeue, "PENDING|gpu|2020-01-01T00:00:00|N/A|Priority", "11\n")
    assert look_up("12") == JobInQueue("Priority", "gpu", None, 1), "a start that has passed is no forecast"


def test_a_job_that_runs_has_an_end(squeue: FakeSlurm) -> None:
    says(squeue, "RUNNING|gpu|2026-01-01T00:00:00|2026-01-01T01:00:00|None")
    told = look_up("12")
    assert told is not None and at(told.ends) == "2026-01-01T01:00:00" and told.reason is None
    says(squeue, "RUNNING|gpu|2026-01-01T00:00:00|NOT_SET|None")
    assert look_up("12") == JobInQueue(partition="gpu") and JobInQueue().ends == math.inf


def test_nothing_is_known_of_a_job_that_slurm_does_not_know(squeue: FakeSlurm) -> None:
    says(squeue, "")
    assert look_up("12") is None
    squeue.answers("squeue", stderr="Invalid job id specified", code=1)
    assert look_up("12") is None
