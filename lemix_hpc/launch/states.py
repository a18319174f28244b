"""What has become of a run: from Slurm, or from the local process, and from what the run wrote."""

from __future__ import annotations

import socket
import subprocess

import msgspec

from lemix_hpc.launch.process import is_alive
from lemix_hpc.launch.rundir import RunDir, RunRecord
from lemix_hpc.records.attempts import EndReason
from lemix_hpc.records.schema import Progress

FINAL = frozenset(
    {
        "COMPLETED",
        "FAILED",
        "CANCELLED",
        "TIMEOUT",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "BOOT_FAIL",
        "DEADLINE",
        "REVOKED",
    }
)
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"})
"""A job that does not run, and may later."""

OF_ENDS: dict[EndReason, str] = {
    "finished": "COMPLETED",
    "drained": "COMPLETED",
    "unsaved": "FAILED",
    "time-limit": "TIMEOUT",
    "preempted": "PREEMPTED",
    "cancelled": "CANCELLED",
    "node-failure": "NODE_FAIL",
    "killed": "FAILED",
    "out-of-memory": "OUT_OF_MEMORY",
    "error": "FAILED",
}
"""The states of runs whose last attempt ended so."""


def run_state(run: RunDir, record: RunRecord) -> str:
    """A state in Slurm's words: PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, TIMEOUT, ...; UNKNOWN if nobody can tell."""
    if record.job is None or record.cluster == "allocation":
        return _state_here(run, record)
    state = _slurm_state(run, record.job)
    if state in FINAL and (successor := next_job(run)) is not None:
        return _slurm_state(run, successor)
    # A job whose run has left work for another one has done its own part.
    return (_state_from_files(run) or state) if state == "COMPLETED" else state


def next_job(run: RunDir) -> str | None:
    """The job that goes on with the run after this one, None without one."""
    try:
        return run.successor.read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def read_progress(run: RunDir) -> Progress | None:
    """The last picture of the run, None before the first."""
    for last in (False, False, True):
        try:
            return msgspec.json.decode(run.progress.read_bytes(), type=Progress)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError:
            # On a full disk it is written over in place.
            if last:
                raise
    return None


def _state_here(run: RunDir, record: RunRecord) -> str:
    """Of a run whose supervisor was started from a command."""
    here = record.host == socket.gethostname()
    if here and record.pid is not None and record.pid_started is not None and is_alive(record.pid, record.pid_started):
        return "RUNNING"
    if record.job is not None and not here and _slurm_state(run, record.job) == "RUNNING":
        return _state_from_files(run) or "RUNNING"
    return _state_from_files(run) or ("FAILED" if here or record.job is not None else "UNKNOWN")


def _state_from_files(run: RunDir) -> str | None:
    if run.cancelled.exists():
        return "CANCELLED"
    attempt = run.last_attempt
    if attempt is not None:
        end = attempt.ended
        if end is not None:
            return OF_ENDS[end.reason]
        return "FAILED" if attempt.failure.exists() else None
    return "COMPLETED" if run.report.exists() else None


def _slurm_state(run: RunDir, job: str) -> str:
    """squeue knows jobs that wait or run, sacct those that ended; where accounting is off, scontrol knows them for minutes."""
    asks = (
        ["squeue", "--noheader", "--jobs", job, "--format", "%T"],
        ["sacct", "-X", "-D", "--noheader", "--parsable2", "--format", "State", "--jobs", job],
        ["scontrol", "--oneliner", "show", "job", job],
    )
    for command in asks:
        states = _states_in(_answer(command), command[0])
        if states:
            # A job that was requeued has a record for each time it ran; the last one counts.
            return states[-1]
    return _state_from_files(run) or "UNKNOWN"


def _answer(command: list[str]) -> str:
    """What a Slurm command prints; nothing if it fails, is not installed or hangs, so that the next one is asked."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _states_in(answer: str, command: str) -> list[str]:
    if command == "scontrol":
        return [word.removeprefix("JobState=") for word in answer.split() if word.startswith("JobState=")]
    # sacct writes `CANCELLED by 1000`.
    return [line.split()[0].rstrip("+") for line in answer.splitlines() if line.strip()]
