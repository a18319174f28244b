"""Attempts have directories of their own, and the last one that started counts with those that it goes on from."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.records.attempts import Attempt, AttemptEnd, AttemptStart, attempts, claim, lineage
from lemix_hpc.records.event_log import read_events
from lemix_hpc.records.reader import directory_at, is_complete, read_run
from lemix_hpc.records.schema import Progress, Span, TaskRecord
from lemix_hpc.records.stretches import stretches_of
from lemix_hpc.records.writer import Recorder
from tests.records.conftest import EXAMPLE_FACTS, EXAMPLE_SPANS, EXAMPLE_TASKS


def start(attempt: Attempt, inherits: int | None = None, clock: float = 0.0) -> None:
    attempt.start(AttemptStart(time=1e9, host="h", inherits=inherits, clock=clock))


def test_an_attempt_is_claimed_once(tmp_path: Path) -> None:
    assert [claim(tmp_path).number for _ in range(3)] == [0, 1, 2]
    (tmp_path / "attempts" / "7").mkdir()
    assert claim(tmp_path).number == 8
    assert [attempt.number for attempt in attempts(tmp_path)] == [0, 1, 2, 7, 8]


def test_a_run_without_attempts_was_simulated(tmp_path: Path) -> None:
    assert attempts(tmp_path) == lineage(tmp_path) == []
    assert is_complete(tmp_path)


def test_who_was_left_behind_does_not_count(tmp_path: Path) -> None:
    first, second, third, fourth = (claim(tmp_path) for _ in range(4))
    assert first.superseded and not fourth.superseded
    start(first)
    start(second, inherits=0)
    start(third, inherits=0)  # it did not see the second one, which then is nobody's
    assert [attempt.number for attempt in lineage(tmp_path)] == [0, 2], "the fourth has not started"
    start(fourth, inherits=2)
    assert [attempt.number for attempt in lineage(tmp_path)] == [0, 2, 3]


def test_what_was_started_and_ended_is_read_back(tmp_path: Path) -> None:
    attempt = claim(tmp_path)
    assert attempt.started is None and attempt.ended is None
    told = AttemptStart(time=1e9, host="h", job="7", inherits=3, journal_bytes=9, checkpoint="step-1", versions={0: 4})
    attempt.start(told)
    attempt.end(AttemptEnd("killed", "rank 3 was killed by signal 9", 2e9))
    assert attempt.started == told
    assert attempt.ended == AttemptEnd("killed", "rank 3 was killed by signal 9", 2e9)
    (attempt.path / "end.json").write_text("{")
    with pytest.raises(UserError, match=r"end\.json: not a file that this version can read"):
        _ = attempt.ended


def test_the_files_of_a_run_are_those_of_the_current_attempt(tmp_path: Path) -> None:
    for text in ("old", "new"):
        attempt = claim(tmp_path)
        (attempt.path / "tasks.jsonl").write_text(text)
        attempt.publish("tasks.jsonl")
        before = (tmp_path / "tasks.jsonl").exists() and (tmp_path / "tasks.jsonl").read_text()
        assert before == {"old": False, "new": "old"}[text]
        attempt.make_current()
        assert (tmp_path / "tasks.jsonl").read_text() == text


def written(
    run_dir: Path, inherits: int | None, clock: float, spans: Sequence[Span], tasks: Sequence[TaskRecord]
) -> Attempt:
    """An attempt that has left these records, and was cut off in the middle of a line."""
    attempt = claim(run_dir)
    start(attempt, inherits, clock)
    recorder = Recorder(attempt.path)
    recorder.inherited(tasks)
    for stretch in stretches_of(spans):
        recorder.work(stretch)
    recorder.facts(EXAMPLE_FACTS)
    recorder.progress(Progress("running"))
    recorder.close()
    for name in ("spans.jsonl", "tasks.jsonl", "events.jsonl"):
        with (attempt.path / name).open("ab") as file:
            file.write(b'{"node":0,"stage":0,"ta')
    return attempt


def test_a_run_is_read_over_its_attempts(tmp_path: Path) -> None:
    written(tmp_path, None, 0.0, EXAMPLE_SPANS[:4], EXAMPLE_TASKS[:1])
    last = written(tmp_path, 0, 2.0, EXAMPLE_SPANS[4:], EXAMPLE_TASKS)
    claim(tmp_path)
    run = read_run(tmp_path)
    assert [(span.task, span.start) for span in run.spans] == [(span.task, span.start) for span in EXAMPLE_SPANS]
    assert [span.batch for span in run.spans if span.kind == "serve"] == [1, 1, 1, 1, 3, 3], (
        "batch 2 is that of attempt 1"
    )
    assert [task.id for task in run.served] == ["a", "b", "c", "d"]
    assert [attempt.number for attempt in run.attempts] == [0, 1]
    assert not run.complete
    assert list(read_events(last.path)) == []
    last.end(AttemptEnd("finished", "", 2e9))
    assert read_run(tmp_path).complete


def test_an_attempt_that_never_began_has_nothing_to_tell(tmp_path: Path) -> None:
    written(tmp_path, None, 0.0, EXAMPLE_SPANS, EXAMPLE_TASKS)
    start(claim(tmp_path), inherits=0)
    assert len(read_run(tmp_path).spans) == len(EXAMPLE_SPANS)


def test_a_moment_belongs_to_an_attempt(tmp_path: Path) -> None:
    first = written(tmp_path, None, 0.0, (), ())
    second = written(tmp_path, 0, 5.0, (), ())
    assert directory_at(tmp_path, 4.9) == first.path
    assert directory_at(tmp_path, 5.0) == second.path


def test_who_was_left_behind_does_not_come_back(tmp_path: Path) -> None:
    first, second = claim(tmp_path), claim(tmp_path)
    second.make_current()
    first.make_current()
    assert (tmp_path / "attempts" / "current").resolve() == second.path
