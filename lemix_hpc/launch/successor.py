"""The job that goes on with a run when the one at hand is over, so that the run outlives any time limit."""

from __future__ import annotations

import subprocess

import msgspec

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.launch.rundir import RunDir
from lemix_hpc.launch.slurm_job import TIMEOUT_S, is_over
from lemix_hpc.launch.states import next_job
from lemix_hpc.records.files import replace


def take_over(run: RunDir, job: str) -> None:
    """Note that the run is in this job now. Raises OSError."""
    record = run.read_record()
    if record.job != job:
        run.write_record(msgspec.structs.replace(record, job=job))
    if next_job(run) == job:
        run.successor.unlink()


def submit_successor(recipe: Recipe, run: RunDir, job: str) -> str:
    """Have one job wait for the end of this one, also if this one was started again. Returns its id.

    Raises UserError if Slurm refuses it.
    """
    from lemix_hpc.launch import slurm

    waiting = next_job(run)
    if waiting is not None and not is_over(waiting):
        return waiting
    successor = slurm.submit(recipe, run, after=job)
    replace(run.successor, successor.encode())
    return successor


def cancel_successor(run: RunDir) -> str | None:
    """The run needs no other job. Returns what Slurm says against it, None if it is gone."""
    waiting = next_job(run)
    if waiting is None:
        return None
    try:
        done = subprocess.run(["scancel", waiting], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode:
        return done.stderr.strip() or f"scancel {waiting} ended with {done.returncode}"
    run.successor.unlink(missing_ok=True)
    return None
