"""The reader of a run's records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.records.schema import RunFacts, ServedTask, Span, TaskRecord, TrainedTask

T = TypeVar("T")


@dataclass(frozen=True)
class RunRecords:
    """The records of one run, in the order of its files; times in seconds since its start."""

    facts: RunFacts
    spans: list[Span]
    served: list[ServedTask]
    trained: list[TrainedTask]


def read_run(run_dir: Path) -> RunRecords:
    """Read `facts.json`, `spans.jsonl` and `tasks.jsonl`. Raises UserError if one is missing, unreadable or broken."""
    if not run_dir.is_dir():
        raise UserError(f"There is no run directory {run_dir}. Give the directory of a run.")
    facts = _read_facts(run_dir / "facts.json")
    spans = _read_lines(run_dir / "spans.jsonl", msgspec.json.Decoder(Span).decode)
    tasks = _read_lines(run_dir / "tasks.jsonl", _decode_task(msgspec.json.Decoder(TaskRecord)))
    served = [task for task in tasks if isinstance(task, ServedTask)]
    trained = [task for task in tasks if isinstance(task, TrainedTask)]
    return RunRecords(facts, spans, served, trained)


def _read_facts(path: Path) -> RunFacts:
    try:
        return msgspec.json.decode(_open(path), type=RunFacts)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} does not hold the facts of a run: {error}. It is written when a run ends.") from error


def _open(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UserError(
            f"{path} {reason}. A report needs facts.json, spans.jsonl and tasks.jsonl, which a run completes at its end."
        ) from error


def _read_lines(path: Path, decode: Callable[[bytes], T]) -> list[T]:
    records = []
    for number, line in enumerate(_open(path).splitlines(), start=1):
        try:
            records.append(decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path}, line {number}: expected one whole JSON record: {error}. The run may have been cut off while "
                "it wrote this line; remove it to make the report from the rest."
            ) from error
    return records


def _decode_task(decoder: msgspec.json.Decoder[TaskRecord]) -> Callable[[bytes], TaskRecord]:
    def decode(line: bytes) -> TaskRecord:
        task = decoder.decode(line)
        if task.outcome == "finished" and task.finished is None:
            raise msgspec.ValidationError(f"task {task.id!r} is finished but has no time in `finished`")
        return task

    return decode
