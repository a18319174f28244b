"""The reader of a run's records."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.text_file import read_bytes, why_no_file
from lemix_hpc.records.attempts import lineage
from lemix_hpc.records.made_by import made_by
from lemix_hpc.records.parts import read_lines
from lemix_hpc.records.schema import (
    FACTS,
    PROGRESS,
    SAMPLES,
    AttemptFacts,
    PostedSample,
    Progress,
    RunFacts,
    ServedTask,
    Span,
    TaskRecord,
    TrainedTask,
)

T = TypeVar("T")


@dataclass(frozen=True)
class RunRecords:
    """The records of one run, in the order of its files; times in seconds since its start.

    `complete`: it has done all that it had to do. `attempts`: none if it was simulated. `posted`: samples of clients.
    """

    facts: RunFacts
    spans: list[Span]
    served: list[ServedTask]
    trained: list[TrainedTask]
    complete: bool = True
    attempts: tuple[AttemptFacts, ...] = ()
    posted: tuple[PostedSample, ...] = ()


def read_run(run_dir: Path) -> RunRecords:
    """Read `facts.json`, `spans.jsonl` and `tasks.jsonl` of a run: its tasks as the last attempt has them, the spans of all.

    A line that was cut off at the end of a file is left out. Raises UserError if a file is missing, unreadable or broken.
    """
    if not run_dir.is_dir():
        raise UserError(f"There is no run directory {run_dir}. Give the directory of a run.")
    directories = record_directories(run_dir)
    facts = read_facts(directories[-1])
    read_spans = msgspec.json.Decoder(Span).decode
    spans = _of_one_run([_read_lines(each / "spans.jsonl", read_spans) for each in directories])
    tasks = _read_lines(directories[-1] / "tasks.jsonl", _decode_task(msgspec.json.Decoder(TaskRecord)))
    served = [task for task in tasks if isinstance(task, ServedTask)]
    trained = [task for task in tasks if isinstance(task, TrainedTask)]
    posted = directories[-1] / SAMPLES
    samples = _read_lines(posted, msgspec.json.Decoder(PostedSample).decode) if posted.exists() else []
    return RunRecords(
        facts, spans, served, trained, is_complete(run_dir), tuple(_attempt_facts(run_dir)), tuple(samples)
    )


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
    except (FileNotFoundError, UserError, msgspec.DecodeError, UnicodeDecodeError):
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


def directory_at(run_dir: Path, time: float) -> Path:
    """Where the records of a moment of the run lie; `time` in seconds since its start."""
    began = [attempt for attempt in lineage(run_dir) if (start := attempt.started) and start.clock <= time]
    return began[-1].path if began else run_dir


def _of_one_run(spans: list[list[Span]]) -> list[Span]:
    """The spans of all attempts; batches are numbered in each, and must not be taken for one another."""
    joined: list[Span] = []
    batches = 0
    for of_attempt in spans:
        before = batches
        for span in of_attempt:
            batches = max(batches, before + span.batch)
            moved = before and span.batch >= 0
            joined.append(msgspec.structs.replace(span, batch=before + span.batch) if moved else span)
    return joined


def read_facts(directory: Path) -> RunFacts:
    """Read `facts.json` of a directory of records. Raises UserError if it is missing, unreadable or broken."""
    path = directory / FACTS
    with _readable(path):
        content = path.read_bytes()
    try:
        return msgspec.json.decode(content, type=RunFacts)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
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


def _read_lines(path: Path, decode: Callable[[bytes], T]) -> list[T]:
    records = []
    with _readable(path):
        for line in read_lines(path):
            try:
                records.append(decode(line.text))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise UserError(
                    f"{line.place}: expected one whole JSON record: {error}{made_by(path)}. Remove this line to make the report "
                    "from the rest."
                ) from error
    return records


def _decode_task(decoder: msgspec.json.Decoder[TaskRecord]) -> Callable[[bytes], TaskRecord]:
    def decode(line: bytes) -> TaskRecord:
        task = decoder.decode(line)
        if task.outcome == "finished" and task.finished is None:
            raise msgspec.ValidationError(f"task {task.id!r} is finished but has no time in `finished`")
        return task

    return decode
