"""A job that waits, or would for ever, is explained where runs are started and listed."""

import json

import pytest

from tests.cli.conftest import REPOSITORY, Command
from tests.launch.conftest import FakeSlurm, fake_slurm

__all__ = ["fake_slurm"]

LIMIT = "PartitionTimeLimit"
MEANING = "`cluster.time` is longer than the partition allows, which `sinfo -o '%P %l'` shows"


@pytest.fixture
def waits(fake_slurm: FakeSlurm) -> FakeSlurm:
    """Slurm takes the job 12, and has `reason` for not starting it."""
    fake_slurm.answers("sbatch", "Submitted batch job 12")
    says(fake_slurm, LIMIT)
    return fake_slurm


def says(slurm: FakeSlurm, reason: str) -> None:
    cases = f"*%S*) echo 'PENDING|gpu|N/A|N/A|{reason}';; *%r*) echo '12|{reason}';; *%T*) echo '12|PENDING';;"
    script = slurm.directory / "squeue"
    script.write_text(f'#!/bin/sh\ncase "$*" in {cases} esac\n')


def submit(inside: Command) -> str:
    recipe = REPOSITORY / "recipes" / "emulated-a100.yaml"
    return str(inside("submit", recipe, "--cluster", "slurm").stderr)


def test_submit_says_at_once_what_keeps_a_job_from_ever_starting(inside: Command, waits: FakeSlurm) -> None:
    assert f"It waits, {LIMIT}: {MEANING}" in submit(inside)
    says(waits, "Priority")
    assert "It waits" not in submit(inside), "that passes by itself"


@pytest.mark.usefixtures("waits")
def test_ps_says_why_runs_wait(inside: Command) -> None:
    submit(inside)
    listed = inside("ps")
    assert "PENDING" in listed.stdout and f" waits, {LIMIT}: {MEANING}" in listed.stderr
    [row] = json.loads(inside("ps", "--json").stdout)
    assert row["reason"] == LIMIT and row["hint"].startswith(MEANING)
