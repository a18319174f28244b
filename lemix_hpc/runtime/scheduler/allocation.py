"""When Slurm ends the allocation that a run is in, and whether it is ending it already."""

from __future__ import annotations

import math
import os
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

ASK_EVERY_S = 30.0
"""A time limit may be shortened while the job runs."""
ANSWER_WITHIN_S = 20.0
RUNNING = ("RUNNING", "SUSPENDED", "STOPPED", "CONFIGURING", "")


@dataclass(frozen=True, slots=True)
class JobTime:
    """What Slurm says of a job: its end [s since the epoch], inf if there is none or it does not say; its state."""

    end: float = math.inf
    state: str = ""

    @property
    def ending(self) -> bool:
        """Slurm is ending the job, for whatever reason, and will kill what is left of it soon."""
        return self.state not in RUNNING


def ask_slurm(job: str) -> JobTime:
    """Ask squeue about a job. What it does not tell is as in `JobTime()`; a site may have no squeue on its hosts."""
    command = ["squeue", "--noheader", "--jobs", job, "--format", "%e|%T"]
    # Users may have set another format of times.
    environment = os.environ | {"SLURM_TIME_FORMAT": "standard"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_WITHIN_S, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return JobTime()
    return parse_answer(done.stdout) if done.returncode == 0 else JobTime()


def parse_answer(text: str) -> JobTime:
    """`2026-11-25T19:30:00|RUNNING`; for a time also NONE, N/A, Unknown or nothing."""
    end, _, state = text.strip().partition("|")
    return JobTime(parse_time(end), state.strip())


def parse_time(text: str) -> float:
    """Seconds since the epoch of a time as Slurm writes it, or of a number of such seconds; inf for anything else."""
    if text.isdecimal():
        return float(text)
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return math.inf


class AllocationWatch:
    """Asks Slurm now and then, in a thread: a controller that is slow to answer must not hold up the scheduler's loop.

    What is known at the start comes from the environment, where newer versions of Slurm put the end.
    """

    def __init__(self, job: str, ask: Callable[[str], JobTime] = ask_slurm) -> None:
        self._job = job
        self._ask = ask
        self._now = threading.Event()
        self._closed = False
        self.known = JobTime(parse_time(os.environ.get("SLURM_JOB_END_TIME", "")))
        """Replaced as a whole."""
        self._thread = threading.Thread(target=self._keep_asking, name="allocation", daemon=True)
        self._thread.start()

    def look_again(self) -> None:
        """Ask at once, since something has happened."""
        self._now.set()

    def close(self) -> None:
        """Ask no more."""
        self._closed = True
        self._now.set()

    def _keep_asking(self) -> None:
        while not self._closed:
            self._now.clear()
            answer = self._ask(self._job)
            # An answer that does not come takes nothing back.
            end = answer.end if answer.end < math.inf or answer.state else self.known.end
            self.known = JobTime(end, answer.state or self.known.state)
            self._now.wait(ASK_EVERY_S)


def watch() -> AllocationWatch | None:
    """The watch over the allocation that this process is in; None outside of one."""
    job = os.environ.get("SLURM_JOB_ID")
    return AllocationWatch(job) if job else None
