"""The files of attempts, as their scheduler ranks write them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from lemix_hpc.records.attempts import Attempt, AttemptStart, lineage
from lemix_hpc.records.inheritance import Inheritance
from lemix_hpc.records.journal import Ended, Record, Trained, journal_part, journal_parts, read_journal
from lemix_hpc.records.journal_writer import Journal
from lemix_hpc.records.reader import read_tasks
from lemix_hpc.records.schema import TaskRecord
from lemix_hpc.records.task_chain import chain
from lemix_hpc.records.writer import Recorder


def start(attempt: Attempt, inherited: Inheritance) -> None:
    """Fence off those before it."""
    attempt.start(
        AttemptStart(
            time=0.0,
            host="h",
            inherits=inherited.last.number if inherited.last is not None else None,
            journal_part=inherited.journal_part,
            journal_bytes=inherited.journal_bytes,
            tasks=inherited.tasks,
            results=inherited.results if inherited.last is not None else None,
            clock=inherited.clock,
            versions=inherited.versions,
        )
    )


def open_files(
    attempt: Attempt, inherited: Inheritance, saved: Callable[[], Mapping[int, int] | None] = lambda: {}
) -> tuple[Recorder, Journal]:
    """What an attempt that has started writes to."""
    recorder = Recorder(attempt.path)
    tasks: list[TaskRecord] = [*inherited.served, *inherited.trained]
    fold = msgspec.structs.replace(inherited.fold, reach=recorder.inherited(tasks), results=0)
    recorder.journal = Journal(attempt.path, fold, settle=recorder.settle, saved=saved)
    return recorder, recorder.journal


def write(recorder: Recorder, records: Iterable[Record]) -> None:
    for record in records:
        if isinstance(record, Ended):
            recorder.request(record.task, record.place, followed=record.followed, results=record.results)
        elif isinstance(record, Trained):
            recorder.micro_batch(record.task)
        else:
            recorder.promise(record)


def write_all(attempt: Attempt, inherited: Inheritance, records: Iterable[Record]) -> None:
    """The files of an attempt that has started and is over."""
    recorder, journal = open_files(attempt, inherited)
    write(recorder, records)
    journal.close()
    recorder.close()


def newest_part(attempt: Attempt) -> Path:
    """Of its journal."""
    return journal_part(attempt.path, journal_parts(attempt.path)[-1])


def records_of(attempt: Attempt) -> list[Record]:
    """What is left of its journal."""
    paths = [journal_part(attempt.path, number) for number in journal_parts(attempt.path)]
    return [record for path in paths for record in read_journal(path).records]


def outcomes(run_dir: Path) -> list[TaskRecord]:
    """All tasks of the run that count, by the files of its attempts."""
    return list(read_tasks(chain(lineage(run_dir))))
