"""The writer of a run's records: spans, tasks, events, facts and live progress."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from lemix_hpc.policy.events import Event
from lemix_hpc.runtime import event_log
from lemix_hpc.runtime.messages import WorkSpan
from lemix_hpc.runtime.records import LearnedTimes, Progress, RunFacts, Span, TaskRecord

RECENT = 200
LEARNED = "learned.json"


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

    def work(self, span: WorkSpan, tasks: Sequence[str]) -> None:
        """One span for each of the tasks, given by id; a single one with an empty `task` if there are none."""
        for task in tasks or [""]:
            self.span(Span(span.node, span.stage, task, span.kind, span.start, span.end, span.version, span.batch))

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


class LiveFigures:
    """Running figures for the live view: recent responses [s] and losses, and how busy each stage was since the last look."""

    def __init__(self, nodes: int, stages: int) -> None:
        self._busy = [[0.0] * stages for _ in range(nodes)]
        self._looked = 0.0
        self._responses: deque[float] = deque(maxlen=RECENT)
        self._losses: deque[float] = deque(maxlen=RECENT // 10)

    def worked(self, node: int, stage: int, seconds: float) -> None:
        self._busy[node][stage] += seconds

    def responded(self, seconds: float) -> None:
        self._responses.append(seconds)

    def learned(self, loss: float) -> None:
        """A micro-batch's loss; emulated ones have none."""
        if not math.isnan(loss):
            self._losses.append(loss)

    @property
    def loss(self) -> float | None:
        return sum(self._losses) / len(self._losses) if self._losses else None

    @property
    def response_ms_p50(self) -> float | None:
        ordered = sorted(self._responses)
        return 1e3 * ordered[len(ordered) // 2] if ordered else None

    def look(self, now: float) -> list[list[float]]:
        """The busy share of every stage since the last look, at most 1."""
        window = max(now - self._looked, 1e-9)
        shares = [[min(1.0, busy / window) for busy in node] for node in self._busy]
        self._busy = [[0.0] * len(node) for node in self._busy]
        self._looked = now
        return shares
