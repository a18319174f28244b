"""What has become of a run: from Slurm, or from the local process, and from what the run wrote."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.text_file import BROKEN_JSON, read_bytes
from lemix_hpc.launch.job_states import job_states
from lemix_hpc.launch.process import is_alive
from lemix_hpc.launch.rundir import RunDir, RunRecord
from lemix_hpc.records.attempts import EndReason
from lemix_hpc.records.made_by import made_by
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
LARGEST_REPORT = 1 << 28
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"})
"""A job that does not run, and may later."""

OF_ENDS: dict[EndReason, str] = {
    "finished": "COMPLETED",
    "drained": "COMPLETED",
    "unsaved": "FAILED",
    "diverged": "FAILED",
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
    """A state in Slurm's words: PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, TIMEOUT, ...; UNKNOWN if nobody can tell.

    Raises UserError where its files are damaged.
    """
    return _states([(run, record)], _state)[0]


def run_states(runs: Sequence[tuple[RunDir, RunRecord]]) -> list[str]:
    """The states of several runs, each as by `run_state`, UNKNOWN where its files are damaged. Slurm is asked for all of them
    at once."""
    return _states(runs, _state_or_unknown)


def _states(runs: Sequence[tuple[RunDir, RunRecord]], state: Callable[..., str]) -> list[str]:
    successors = [next_job(run) for run, _ in runs]
    jobs = {record.job for _, record in runs if record.job is not None and _is_told_by_slurm(record)}
    states = job_states(jobs | set(filter(None, successors)))
    return [state(run, record, states, successor) for (run, record), successor in zip(runs, successors, strict=True)]


def _state_or_unknown(run: RunDir, record: RunRecord, states: Mapping[str, str], successor: str | None) -> str:
    try:
        return _state(run, record, states, successor)
    except (UserError, OSError):
        return "UNKNOWN"


def _state(run: RunDir, record: RunRecord, states: Mapping[str, str], successor: str | None) -> str:
    if record.job is None or record.cluster == "allocation":
        return _state_here(run, record, states)
    state = _of_job(run, record.job, states)
    if state in FINAL and successor is not None:
        return _of_job(run, successor, states)
    # A job whose run has left work for another one has done its own part.
    return (_state_from_files(run) or state) if state == "COMPLETED" else state


def _of_job(run: RunDir, job: str, states: Mapping[str, str]) -> str:
    return states.get(job) or _state_from_files(run) or "UNKNOWN"


def _is_told_by_slurm(record: RunRecord) -> bool:
    """Whether the state of its job says something of a run: not in an allocation that was there before, on this host."""
    return record.cluster != "allocation" or record.host != socket.gethostname()


def next_job(run: RunDir) -> str | None:
    """The job that goes on with the run after this one, None without one."""
    try:
        return run.successor.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def read_progress(run: RunDir) -> Progress | None:
    """The last picture of the run, None before the first, and where it cannot be read."""
    for _ in range(3):
        try:
            return msgspec.json.decode(read_bytes(run.progress), type=Progress)
        except (OSError, UserError):
            return None
        except BROKEN_JSON:
            continue  # on a full disk it is written over in place
    return None


def read_report(run: RunDir) -> dict[str, Any]:
    """The written report. Raises UserError if it is damaged."""
    try:
        return msgspec.json.decode(read_bytes(run.report, most=LARGEST_REPORT), type=dict[str, Any])
    except (OSError, *BROKEN_JSON) as error:
        raise UserError(
            f"{run.report}: not a report that can be read: {error}{made_by(run.report)}; remove it, and one is made again"
        ) from error


def _state_here(run: RunDir, record: RunRecord, states: Mapping[str, str]) -> str:
    """Of a run whose supervisor was started from a command."""
    here = record.host == socket.gethostname()
    if here and record.pid is not None and record.pid_started is not None and is_alive(record.pid, record.pid_started):
        return "RUNNING"
    if record.job is not None and not here and _of_job(run, record.job, states) == "RUNNING":
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
