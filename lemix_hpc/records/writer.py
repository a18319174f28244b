"""The writer of a run's records: spans, tasks, events, facts and live progress."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from lemix_hpc.policy.events import Event
from lemix_hpc.records import event_log
from lemix_hpc.records.files import overwrite, patiently, replace
from lemix_hpc.records.journal import Ended, Record, Trained
from lemix_hpc.records.journal_writer import Journal
from lemix_hpc.records.parted_file import PartedFile
from lemix_hpc.records.parts import Reach
from lemix_hpc.records.schema import (
    FACTS,
    LEARNED,
    MEMORY,
    PROGRESS,
    RECALLED,
    SPANS,
    TASKS,
    BatchWork,
    LearnedTimes,
    Progress,
    RunFacts,
    SchedulerMemory,
    ServedTask,
    Stretch,
    TaskRecord,
    TrainedTask,
)

MOST_KEPT = 64 << 20
"""Bytes of spans, and of events, that are kept for a disk that does not take them."""


class Recorder:
    """Writes the files of one run into `run_dir`, which must exist. Raises OSError if they cannot be made.

    Spans, tasks and events are appended as JSON lines, flushed with every progress update and at the end; older parts of their
    files are compressed. Progress, facts
    and what was learned are files that are replaced as a whole. What the disk does not take is kept and tried again: see
    `trouble`.
    """

    def __init__(self, run_dir: Path) -> None:
        self.journal: Journal | None = None
        """Where what is promised and what comes of it goes, too, if there is one."""
        self._dir = run_dir
        self._encoder = msgspec.json.Encoder()
        self._spans = PartedFile(run_dir / SPANS, MOST_KEPT)
        self._tasks = PartedFile(run_dir / TASKS)
        self._events = PartedFile(run_dir / event_log.EVENTS, MOST_KEPT)
        self._event_lines = event_log.EventLines(self._events.write)
        self._whole: dict[str, bytes] = {}
        self._refused: OSError | None = None

    @property
    def trouble(self) -> str | None:
        """Why the disk does not take everything, None while it does."""
        lines = (file.trouble for file in (self._spans, self._tasks, self._events))
        refused = self._refused
        return next(filter(None, lines), None if refused is None else refused.strerror or str(refused))

    @property
    def left_out(self) -> int:
        """How many spans and events were more than could be kept for a disk that did not take them."""
        return self._spans.left_out + self._events.left_out

    def work(self, stretch: Stretch) -> None:
        """Append to `spans.jsonl`: what a stage has done."""
        self._spans.write(self._encoder.encode(stretch) + b"\n")

    def batch(self, work: BatchWork) -> None:
        """The same of all stages, for a batch."""
        self._spans.write(self._encoder.encode(work) + b"\n")

    def micro_batch(self, task: TrainedTask) -> None:
        """Append to `tasks.jsonl`: a micro-batch has its outcome."""
        self.promise(Trained(task, self._line(task)))

    def request(self, task: ServedTask, place: int | None = None, *, followed: bool = False, results: int = 0) -> None:
        """The same for a request; the rest is as in `Ended`."""
        self.promise(Ended(task, self._line(task), place, followed, results))

    def _line(self, task: TaskRecord) -> Reach:
        self._tasks.write(self._encoder.encode(task) + b"\n")
        return self._tasks.reach

    def inherited(self, tasks: Iterable[TaskRecord], timeout_s: float = 0.0) -> Reach:
        """Begin `tasks.jsonl` with what earlier attempts have done and have not there, on the disk when this returns how far it
        reaches.

        Raises OSError if the disk does not take it in `timeout_s`.
        """
        for task in tasks:
            self._tasks.write(self._encoder.encode(task) + b"\n")
        patiently(self._tasks.sync, timeout_s)
        return self._tasks.reach

    def settle(self) -> None:
        """Wait until all lines of `tasks.jsonl` so far are on the disk. From any thread. Raises OSError."""
        self._tasks.settle()

    def promise(self, record: Record) -> None:
        """Append to the journal, if there is one."""
        if self.journal is not None:
            self.journal.append(record)

    def event(self, event: Event) -> None:
        """Append to `events.jsonl`."""
        self._event_lines.add(event)

    def progress(self, progress: Progress) -> None:
        """Replace `progress.json`, and flush all lines so far."""
        content = self._encoder.encode(progress)
        self._whole[PROGRESS] = content
        if not self.flush() and PROGRESS in self._whole:
            with contextlib.suppress(OSError):
                overwrite(self._dir / PROGRESS, content)

    def facts(self, facts: RunFacts) -> None:
        """Replace `facts.json`."""
        self._whole[FACTS] = msgspec.json.format(self._encoder.encode(facts))
        self._replace()

    def learned(self, learned: LearnedTimes) -> None:
        """Replace `learned.json`."""
        self._whole[LEARNED] = msgspec.json.format(self._encoder.encode(learned))
        self._replace()

    def memory(self, memory: SchedulerMemory) -> None:
        """Replace `memory.json`."""
        self._whole[MEMORY] = self._encoder.encode(memory)
        self._replace()

    def recalled(self, memory: SchedulerMemory) -> None:
        """Write `recalled.json`."""
        self._whole[RECALLED] = self._encoder.encode(memory)
        self._replace()

    def flush(self) -> bool:
        """Hand everything to the system; False if it does not take it all."""
        self._event_lines.end()
        lines = [file.flush() for file in (self._spans, self._tasks, self._events)]
        return self._replace() and all(lines)

    def close(self, timeout_s: float = 0.0, over: Callable[[], bool] = lambda: False) -> None:
        """Write what is left and close all files.

        Raises OSError if the disk does not take it in `timeout_s`, or before it is `over`.
        """
        patiently(self._all, timeout_s, over)
        for file in (self._spans, self._tasks, self._events):
            file.close()

    def _all(self) -> None:
        self._event_lines.end()
        for file in (self._spans, self._tasks, self._events):
            file.sync()
        if not self._replace():
            assert self._refused is not None, "it says why"
            raise self._refused

    def _replace(self) -> bool:
        """Write the files that are replaced as a whole and have not been yet."""
        self._refused = None
        for name, content in list(self._whole.items()):
            try:
                replace(self._dir / name, content)
            except OSError as error:
                self._refused = error
            else:
                del self._whole[name]
        return self._refused is None
