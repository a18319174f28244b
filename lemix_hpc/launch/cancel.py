"""End a run before its time: at once, or after what has begun."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess

from lemix_hpc.config.errors import UserError
from lemix_hpc.launch.process import is_alive, send_signal
from lemix_hpc.launch.rundir import RunDir, RunRecord
from lemix_hpc.launch.states import FINAL, WAITING, next_job, run_state


def stop(run: RunDir, record: RunRecord) -> str:
    """Ask a run to finish what has begun, save, report and end. Returns what happens now.

    It looks for the file about every second, wherever it is. Raises UserError for one that has ended.
    """
    state = _of_unended(run, record)
    if run.profile_order.exists():
        cancel(run, record)
        return "is ended; what it has measured is kept"
    run.stop.touch()
    if record.cluster != "slurm":
        return "is stopping: it finishes what has begun, and then reports and ends"
    job = _job(run, record)
    # Where that fails the supervisor does it at the end; a successor that starts all the same sees that there is nothing to do.
    with contextlib.suppress(UserError):
        _cancel_successor(run)
    if state in WAITING:
        _scancel(job)
        return "had not begun; its job is cancelled"
    # Sooner than a shared file system may show the file. A job that has just ended needs no signal.
    with contextlib.suppress(UserError):
        _scancel("--signal=TERM", job)
    return "is stopping: it finishes what has begun, and then reports and ends"


def cancel(run: RunDir, record: RunRecord) -> None:
    """Ask Slurm, or the run's supervisor, to end the run at once. Raises UserError if it cannot be reached from here."""
    if record.cluster == "simulated":
        raise UserError(f"{record.id} was simulated, and has ended")
    if record.cluster != "slurm":
        if not end_local(run, record):
            raise UserError(f"{record.id} has already ended")
        return
    job = _job(run, record)
    _cancel_successor(run)
    # Before, so that nobody takes the end that follows for a failure.
    run.cancelled.touch()
    try:
        _scancel(job)
    except UserError:
        run.cancelled.unlink()
        raise


def end_local(run: RunDir, record: RunRecord) -> bool:
    """End a run whose supervisor is on this host: on TERM it ends mpiexec or srun, and with them the ranks.

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
    return send_signal(record.pid, record.pid_started, signal.SIGTERM)


def _of_unended(run: RunDir, record: RunRecord) -> str:
    """Its state. Raises UserError if it is a final one."""
    if record.cluster == "simulated":
        raise UserError(f"{record.id} was simulated, and has ended")
    state = run_state(run, record)
    if state in FINAL:
        raise UserError(f"{record.id} has already ended: it is {state}")
    return state


def _job(run: RunDir, record: RunRecord) -> str:
    """Of a run under Slurm. Raises UserError if its submission was cut off before it had one."""
    if record.job is None:
        raise UserError(f"{run.record}: names no job; where `squeue --me` shows one of it, `scancel` ends that")
    return record.job


def _cancel_successor(run: RunDir) -> None:
    successor = next_job(run)
    if successor is not None:
        _scancel(successor)
        run.successor.unlink(missing_ok=True)


def _scancel(*arguments: str) -> None:
    done = subprocess.run(["scancel", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"scancel {' '.join(arguments)} failed: {done.stderr.strip()}")
