"""The reader of a run's records."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.text_file import BROKEN_JSON, read_bytes, why_no_file
from lemix_hpc.records.attempts import Attempt, lineage
from lemix_hpc.records.line_chain import CountedFile, line_chain
from lemix_hpc.records.made_by import made_by
from lemix_hpc.records.parts import Reach, read_lines
from lemix_hpc.records.schema import (
    FACTS,
    PROGRESS,
    SAMPLES,
    SPANS,
    TASKS,
    AttemptFacts,
    PostedSample,
    Progress,
    RunFacts,
    ServedTask,
    Span,
    Stretch,
    TaskRecord,
    TrainedTask,
)
from lemix_hpc.records.stretches import merged, spans_of, stretches_decoder, stretches_of
from lemix_hpc.records.task_chain import TaskFile, chain

T = TypeVar("T")


class Records(Protocol):
    """The records of one run; times in seconds since its start.

    `complete`: it has done all that it had to do. `attempts`: none if it was simulated. `posted`: samples of clients.
    """

    @property
    def facts(self) -> RunFacts: ...

    @property
    def complete(self) -> bool: ...

    @property
    def attempts(self) -> tuple[AttemptFacts, ...]: ...

    @property
    def posted(self) -> Iterable[PostedSample]: ...

    def stretches(self) -> Iterator[Stretch]:
        """The work of all stages, about in the order of its ends."""

    def tasks(self) -> Iterator[TaskRecord]:
        """All requests and micro-batches."""


@dataclass(frozen=True)
class RunRecords:
    """The records of one run in memory, in the order of its files: see `Records`."""

    facts: RunFacts
    spans: list[Span]
    served: list[ServedTask]
    trained: list[TrainedTask]
    complete: bool = True
    attempts: tuple[AttemptFacts, ...] = ()
    posted: tuple[PostedSample, ...] = ()

    def stretches(self) -> Iterator[Stretch]:
        return stretches_of(self.spans)

    def tasks(self) -> Iterator[TaskRecord]:
        yield from self.served
        yield from self.trained


@dataclass(frozen=True)
class RunStream:
    """The records of one run, read anew from its files each time that they are asked for: see `Records`.

    Tasks are those that count, work is that of all attempts. A line that was cut off at the end of a file is left out.
    Raises UserError if a file is missing, unreadable or broken, when that is come to.
    """

    directories: list[Path]
    files: list[TaskFile]
    samples: list[CountedFile]
    facts: RunFacts
    complete: bool
    attempts: tuple[AttemptFacts, ...]

    @property
    def posted(self) -> Iterator[PostedSample]:
        decode = msgspec.json.Decoder(PostedSample).decode
        for file in self.samples:
            reach = None if file.count is None else Reach(1, file.count)
            yield from _read_lines(file.path, decode, reach)

    def stretches(self) -> Iterator[Stretch]:
        lines = (_read_lines(each / SPANS, stretches_decoder()) for each in self.directories)
        return merged(_of_one_run(map(itertools.chain.from_iterable, lines)))

    def tasks(self) -> Iterator[TaskRecord]:
        return read_tasks(self.files)


def stream_run(run_dir: Path) -> RunStream:
    """The files of a run. Raises UserError if there is no such run, or one of `facts.json`, `spans.jsonl` and `tasks.jsonl` is
    missing."""
    if not run_dir.is_dir():
        raise UserError(f"There is no run directory {run_dir}. Give the directory of a run.")
    directories = record_directories(run_dir)
    facts = read_facts(directories[-1])
    files, samples = task_files(run_dir, directories[-1]), _samples(run_dir, directories[-1])
    return RunStream(directories, files, samples, facts, is_complete(run_dir), tuple(_attempt_facts(run_dir)))


def read_run(run_dir: Path) -> RunRecords:
    """The records of a run in memory. Raises UserError if a file is missing, unreadable or broken."""
    run = stream_run(run_dir)
    spans = [span for stretch in run.stretches() for span in spans_of(stretch)]
    served: list[ServedTask] = []
    trained: list[TrainedTask] = []
    for task in run.tasks():
        if isinstance(task, ServedTask):
            served.append(task)
        else:
            trained.append(task)
    return RunRecords(run.facts, spans, served, trained, run.complete, run.attempts, tuple(run.posted))


def is_complete(run_dir: Path) -> bool:
    """Whether a run has done all that it had to do: its last attempt ended, and left nothing to another one."""
    line = lineage(run_dir)
    if not line:
        return True
    end = line[-1].ended
    if end is not None:
        return end.reason == "finished"
    try:
        shown = msgspec.json.decode(read_bytes(line[-1].path / PROGRESS), type=Progress)
    except (FileNotFoundError, UserError, *BROKEN_JSON):
        return False
    return shown.state == "finished"


def _attempt_facts(run_dir: Path) -> Iterator[AttemptFacts]:
    for attempt in lineage(run_dir):
        start, end = attempt.started, attempt.ended
        if start is not None and end is not None:
            yield AttemptFacts(attempt.number, start.time, end.time, end.reason, end.message, start.damage)
        elif start is not None:
            yield AttemptFacts(attempt.number, start.time, damage=start.damage)


def record_directories(run_dir: Path) -> list[Path]:
    """Where the records of a run lie: a directory for each attempt that counts, or its own if it was simulated.

    Attempts that ended before their engines were ready have none.
    """
    paths = [attempt.path for attempt in lineage(run_dir)] or [run_dir]
    return [path for path in paths if (path / FACTS).exists()] or paths[-1:]


def task_files(run_dir: Path, last: Path) -> list[TaskFile]:
    """The files with the tasks of a run, of which `last` is the last directory of records."""
    line = _until(run_dir, last)
    return chain(line) if line else [TaskFile(last / TASKS)]


def _samples(run_dir: Path, last: Path) -> list[CountedFile]:
    line, alone = _until(run_dir, last), last / SAMPLES
    if line:
        return line_chain(line, SAMPLES)
    return [CountedFile(alone, None)] if alone.exists() else []


def _until(run_dir: Path, last: Path) -> list[Attempt]:
    """The attempts of the lineage up to the one whose directory that is; none of a simulated run."""
    line = lineage(run_dir)
    until = [place for place, attempt in enumerate(line) if attempt.path == last]
    return line[: until[0] + 1] if until else []


def read_tasks(files: Iterable[TaskFile]) -> Iterator[TaskRecord]:
    """Tasks in order, read one by one. Raises UserError if a file is missing, unreadable or broken, when that is come to."""
    decode = _decode_task(msgspec.json.Decoder(TaskRecord))
    for file in files:
        yield from filter(file.has, _read_lines(file.path, decode, file.reach))


def directory_at(run_dir: Path, time: float) -> Path:
    """Where the records of a moment of the run lie; `time` in seconds since its start."""
    began = [attempt for attempt in lineage(run_dir) if (start := attempt.started) and start.clock <= time]
    return began[-1].path if began else run_dir


def _of_one_run(attempts: Iterable[Iterable[Stretch]]) -> Iterator[Stretch]:
    """The work of all attempts; batches are numbered in each, and must not be taken for one another."""
    batches = 0
    for of_attempt in attempts:
        before = batches
        for stretch in of_attempt:
            batches = max(batches, before + stretch.batch)
            moved = before and stretch.batch >= 0
            yield msgspec.structs.replace(stretch, batch=before + stretch.batch) if moved else stretch


def read_facts(directory: Path) -> RunFacts:
    """Read `facts.json` of a directory of records. Raises UserError if it is missing, unreadable or broken."""
    path = directory / FACTS
    with _readable(path):
        content = path.read_bytes()
    try:
        return msgspec.json.decode(content, type=RunFacts)
    except BROKEN_JSON as error:
        raise UserError(
            f"{path} does not hold the facts of a run: {error}{made_by(path)}. It is written when a run starts."
        ) from error


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    if why := why_no_file(path):
        raise UserError(why)
    try:
        yield
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UserError(
            f"{path} {reason}. A report needs facts.json, spans.jsonl and tasks.jsonl, which a run has once its engines are "
            "ready."
        ) from error


def _read_lines(path: Path, decode: Callable[[bytes], T], reach: Reach | None = None) -> Iterator[T]:
    with _readable(path):
        lines = read_lines(path, reach)
    for line in lines:
        try:
            record = decode(line.text)
        except BROKEN_JSON as error:
            raise UserError(
                f"{line.place}: expected one whole JSON record: {error}{made_by(path)}. Remove this line to make the "
                "report from the rest."
            ) from error
        yield record


def _decode_task(decoder: msgspec.json.Decoder[TaskRecord]) -> Callable[[bytes], TaskRecord]:
    def decode(line: bytes) -> TaskRecord:
        task = decoder.decode(line)
        if task.outcome == "finished" and task.finished is None:
            raise msgspec.ValidationError(f"task {task.id!r} is finished but has no time in `finished`")
        return task

    return decode
