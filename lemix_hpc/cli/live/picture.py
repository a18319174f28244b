"""Pictures of a run, one after the other: what its files say, and, where it is a Slurm job, what Slurm says."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.text_file import BROKEN_JSON, read_bytes
from lemix_hpc.launch.job_queue import JobInQueue, look_up
from lemix_hpc.launch.start import StartedRun
from lemix_hpc.launch.states import FINAL, WAITING, next_job, read_progress, run_state
from lemix_hpc.records.attempts import ATTEMPTS, CURRENT, Attempt, AttemptEnd, attempts
from lemix_hpc.records.schema import MemoryUse, Progress

LOOK_EVERY_S = 0.25
ASK_SLURM_EVERY_S = 5.0
ASK_SLURM_ENDING_S = 1.0
ASK_QUEUE_EVERY_S = 30.0
READ_FACTS_EVERY_S = 5.0
"""They are written so often."""
UNREAD_LOOKS = 240
"""In a row, a minute, after which a run whose files cannot be read is given up; it goes on."""


@dataclass(frozen=True)
class Picture:
    """A run at one moment, `now` [s since the epoch]; `created` then.

    `progress`: the last that was written, `age_s` ago; `earlier`: by an attempt before the last one. `ends`: how its attempts
    ended, None for one that has not. `host`: that of the last one's scheduler rank. `job`: in Slurm's queue, None if Slurm does
    not tell, or it is no job. `memory`: what is used of it, None where it has no limit.
    """

    name: str
    state: str
    created: float
    now: float
    progress: Progress | None = None
    age_s: float = 0.0
    earlier: bool = False
    ends: tuple[AttemptEnd | None, ...] = ()
    host: str | None = None
    job_id: str | None = None
    job: JobInQueue | None = None
    memory: MemoryUse | None = None

    @property
    def over(self) -> bool:
        """Nothing will come any more."""
        return self.state in FINAL

    @property
    def current(self) -> Progress | None:
        """The figures of the attempt at hand: None before it has any, and while the run waits for another one."""
        return None if self.earlier or self.state in WAITING else self.progress

    @property
    def attempt(self) -> int:
        """The number of the attempt at hand, or of the one to come."""
        to_come = not self.ends or (self.state in WAITING and self.end is not None)
        return len(self.ends) - (not to_come)

    @property
    def before(self) -> dict[int, AttemptEnd]:
        """How attempts before that one ended, by their numbers, as far as it is known."""
        return {number: end for number, end in enumerate(self.ends[: self.attempt]) if end is not None}

    @property
    def end(self) -> AttemptEnd | None:
        """How the last attempt ended."""
        return self.ends[-1] if self.ends else None


def pictures(started: StartedRun) -> Iterator[Picture]:
    """Pictures of the run, four a second, up to and with the one of its final state.

    Raises UserError or OSError where its files cannot be read for a minute.
    """
    looks, unread = _Looks(started), 0
    while True:
        try:
            looks.look()
            unread = 0
        except (UserError, OSError):
            # A file server that was away, or a file that is written this moment: the run goes on meanwhile.
            unread += 1
            if unread >= UNREAD_LOOKS:
                raise
        yield looks.picture()
        if looks.state in FINAL:
            return
        time.sleep(LOOK_EVERY_S)


class _Facts(msgspec.Struct):
    """Of those in `facts.json`."""

    memory: MemoryUse | None = None


class _Looks:
    """What is known so far. What cannot be read at a look stays as it was."""

    def __init__(self, started: StartedRun) -> None:
        self._started = started
        self._record = started.record
        self.state = "PENDING"
        self._progress: Progress | None = None
        self._age_s = 0.0
        self._earlier = False
        self._ends: dict[int, AttemptEnd | None] = {}
        self._host: str | None = None
        self._job: JobInQueue | None = None
        self._ending = False
        self._memory: MemoryUse | None = None
        self._asked = self._asked_queue = self._read = -math.inf

    def picture(self) -> Picture:
        record = self._record
        return Picture(
            record.id,
            self.state,
            record.created,
            time.time(),
            self._progress,
            self._age_s,
            self._earlier,
            tuple(self._ends[number] for number in sorted(self._ends)),
            self._host,
            record.job,
            self._job,
            self._memory,
        )

    def look(self) -> None:
        """Raises UserError or OSError for what cannot be read."""
        run, process = self._started.run, self._started.process
        if process is not None:
            process.poll()
        # Where Slurm need not be asked it costs nothing to know.
        here = process is not None or self._record.job is None
        every = 0.0 if here else ASK_SLURM_ENDING_S if self._ending else ASK_SLURM_EVERY_S
        if time.monotonic() - self._asked >= every:
            self._asked = time.monotonic()
            self._ask_for_state()
        if self._record.job is not None and time.monotonic() - self._asked_queue >= ASK_QUEUE_EVERY_S:
            self._asked_queue = time.monotonic()
            # Once the job has ended, the one that goes on after it.
            self._job = look_up(self._record.job) or ((then := next_job(run)) and look_up(then)) or None
        self._progress = read_progress(run) or self._progress
        self._look_at_attempts()
        if time.monotonic() - self._read >= READ_FACTS_EVERY_S:
            self._read = time.monotonic()
            self._look_at_memory()

    def _ask_for_state(self) -> None:
        run = self._started.run
        state, asked_of = run_state(run, self._record), self._record.job
        if self._started.process is None:
            # The next job of a run takes it over, and says so there.
            self._record = run.read_record()
        if state not in FINAL or self._record.job == asked_of:
            self._asked_queue = self._asked_queue if state == self.state else -math.inf
            self.state = state

    def _look_at_attempts(self) -> None:
        run = self._started.run
        found = attempts(run.path)
        for attempt in found:
            if self._ends.get(attempt.number) is None:
                self._ends[attempt.number] = attempt.ended
        ended_itself = self._progress is not None and self._progress.state in ("finished", "failed")
        self._ending = ended_itself or (bool(found) and found[-1].failure.exists())
        if self._progress is not None and run.progress.exists():
            self._age_s = max(0.0, time.time() - run.progress.stat().st_mtime)
        self._earlier = bool(found) and _is_earlier(found[-1])
        if found and (start := found[-1].started) is not None:
            self._host = start.host

    def _look_at_memory(self) -> None:
        facts = self._started.run.facts
        try:
            self._memory = msgspec.json.decode(read_bytes(facts), type=_Facts).memory
        except FileNotFoundError:
            return  # before it has served or trained
        except BROKEN_JSON as error:
            raise UserError(f"{facts}: cannot be read: {error}") from error


def _is_earlier(last: Attempt) -> bool:
    """Whether the run's files are still those of an attempt before the last one."""
    current = last.run_dir / ATTEMPTS / CURRENT
    return current.is_symlink() and current.readlink().name != last.path.name
