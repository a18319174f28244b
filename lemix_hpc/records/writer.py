"""The writer of a run's records: spans, tasks, events, facts and live progress."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import msgspec

from lemix_hpc.policy.events import Event
from lemix_hpc.records import event_log
from lemix_hpc.records.files import replace
from lemix_hpc.records.journal import Ended, Journal, Record, Trained
from lemix_hpc.records.schema import (
    FACTS,
    LEARNED,
    PROGRESS,
    LearnedTimes,
    Progress,
    RunFacts,
    ServedTask,
    Span,
    TaskRecord,
)


class Recorder:
    """Writes the files of one run into `run_dir`, which must exist. Every method may raise OSError.

    Spans, tasks and events are appended as JSON lines, flushed with every progress update and at the end. Progress, facts
    and what was learned are files that are replaced as a whole. With a `journal`, what was promised and what came of it goes
    there, too.
    """

    def __init__(self, run_dir: Path, journal: Journal | None = None) -> None:
        self._dir = run_dir
        self._journal = journal
        self._encoder = msgspec.json.Encoder()
        self._spans = self._open("spans.jsonl")
        self._tasks = self._open("tasks.jsonl")
        self._events = self._open(event_log.EVENTS)

    def _open(self, name: str) -> BinaryIO:
        return (self._dir / name).open("wb")

    def span(self, span: Span) -> None:
        """Append to `spans.jsonl`."""
        self._spans.write(self._encoder.encode(span) + b"\n")

    def task(self, task: TaskRecord) -> None:
        """Append to `tasks.jsonl`: a task has its outcome."""
        self._tasks.write(self._encoder.encode(task) + b"\n")
        self.promise(Ended(task) if isinstance(task, ServedTask) else Trained(task))

    def inherited(self, tasks: Iterable[TaskRecord]) -> None:
        """Begin `tasks.jsonl` with what earlier attempts have done, on the disk when this returns."""
        self._tasks.writelines(self._encoder.encode(task) + b"\n" for task in tasks)
        self._tasks.flush()
        os.fsync(self._tasks.fileno())

    def promise(self, record: Record) -> None:
        """Append to the journal, if there is one."""
        if self._journal is not None:
            self._journal.append(record)

    def event(self, event: Event) -> None:
        """Append to `events.jsonl`."""
        self._events.write(event_log.encode(event))

    def progress(self, progress: Progress) -> None:
        """Replace `progress.json`, and flush all lines so far."""
        self._spans.flush()
        self._tasks.flush()
        self._events.flush()
        replace(self._dir / PROGRESS, self._encoder.encode(progress))

    def facts(self, facts: RunFacts) -> None:
        """Replace `facts.json`."""
        replace(self._dir / FACTS, msgspec.json.format(self._encoder.encode(facts)))

    def learned(self, learned: LearnedTimes) -> None:
        """Replace `learned.json`."""
        replace(self._dir / LEARNED, msgspec.json.format(self._encoder.encode(learned)))

    def close(self) -> None:
        """Flush and close all files."""
        self._spans.close()
        self._tasks.close()
        self._events.close()
