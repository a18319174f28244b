"""What has become of a run: from Slurm, or from the local process, and from what the run wrote."""

from __future__ import annotations

import socket
import subprocess

import msgspec

from lemix_hpc.launch.process import is_alive
from lemix_hpc.launch.rundir import RunDir, RunRecord
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


def run_state(run: RunDir, record: RunRecord) -> str:
    """A state in Slurm's words: PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, TIMEOUT, ...; UNKNOWN if nobody can tell."""
    if record.job is None:
        return _local_state(run, record)
    if record.cluster == "slurm":
        return _slurm_state(run, record.job)
    # The allocation goes on after the run, or ends under it.
    state = _state_from_files(run) or _slurm_state(run, record.job)
    return "FAILED" if state == "COMPLETED" and not run.report.exists() else state


def read_progress(run: RunDir) -> Progress | None:
    """The last picture of the run, None before the first."""
    try:
        return msgspec.json.decode(run.progress.read_bytes(), type=Progress)
    except FileNotFoundError:
        return None


def _local_state(run: RunDir, record: RunRecord) -> str:
    if record.host != socket.gethostname():
        return _state_from_files(run) or "UNKNOWN"
    if record.pid is not None and record.pid_started is not None and is_alive(record.pid, record.pid_started):
        return "RUNNING"
    return _state_from_files(run) or "FAILED"


def _state_from_files(run: RunDir) -> str | None:
    if run.cancelled.exists():
        return "CANCELLED"
    if run.failure.exists():
        return "FAILED"
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
