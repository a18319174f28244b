"""The writer of a run's records: spans, tasks, events, facts and live progress."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import msgspec

from lemix_hpc.policy.events import Event
from lemix_hpc.records import event_log
from lemix_hpc.records.schema import LEARNED, LearnedTimes, Progress, RunFacts, Span, TaskRecord


class Recorder:
    """Writes the files of one run into `run_dir`, which must exist. Every method may raise OSError.

    Spans, tasks and events are appended as JSON lines, flushed with every progress update and at the end. Progress, facts
    and what was learned are files that are replaced as a whole.
    """

    def __init__(self, run_dir: Path) -> None:
        self._dir = run_dir
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
        """Append to `tasks.jsonl`."""
        self._tasks.write(self._encoder.encode(task) + b"\n")

    def event(self, event: Event) -> None:
        """Append to `events.jsonl`."""
        self._events.write(event_log.encode(event))

    def progress(self, progress: Progress) -> None:
        """Replace `progress.json`, and flush all lines so far."""
        self._spans.flush()
        self._tasks.flush()
        self._events.flush()
        replace(self._dir / "progress.json", self._encoder.encode(progress))

    def facts(self, facts: RunFacts) -> None:
        """Replace `facts.json`."""
        replace(self._dir / "facts.json", msgspec.json.format(self._encoder.encode(facts)))

    def learned(self, learned: LearnedTimes) -> None:
        """Replace `learned.json`."""
        replace(self._dir / LEARNED, msgspec.json.format(self._encoder.encode(learned)))

    def close(self) -> None:
        """Flush and close all files."""
        self._spans.close()
        self._tasks.close()
        self._events.close()


def replace(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part. Raises OSError."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)
