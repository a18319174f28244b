"""End a run before its time."""

from __future__ import annotations

import signal
import socket
import subprocess

from lemix_hpc.config.errors import UserError
from lemix_hpc.launch.process import is_alive, signal_group
from lemix_hpc.launch.rundir import RunDir, RunRecord


def cancel(run: RunDir, record: RunRecord) -> None:
    """Ask Slurm, or mpiexec, to end the run. Raises UserError if it cannot be reached from here."""
    if record.cluster == "simulated":
        raise UserError(f"{record.id} was simulated, and has ended")
    if record.cluster != "slurm":
        if not end_local(run, record):
            raise UserError(f"{record.id} has already ended")
        return
    assert record.job is not None, "a submitted run has a job"
    done = subprocess.run(["scancel", record.job], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"scancel {record.job} failed: {done.stderr.strip()}")
    run.cancelled.touch()


def end_local(run: RunDir, record: RunRecord) -> bool:
    """End a run whose launcher is on this host: mpiexec and srun end its ranks when they get TERM.

    Returns whether it was still running.
    """
    if record.host != socket.gethostname():
        raise UserError(f"{record.id} runs on {record.host}; cancel it there")
    if record.pid is None or record.pid_started is None:
        raise UserError(f"{run.record}: names neither a job nor a process")
    if not is_alive(record.pid, record.pid_started):
        return False
    # Before the signal, so that nobody takes the end that follows for a failure.
    run.cancelled.touch()
    return signal_group(record.pid, record.pid_started, signal.SIGTERM)
