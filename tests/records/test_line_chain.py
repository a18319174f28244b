"""`samples.jsonl` and `results.jsonl`, which attempts go on with."""

from pathlib import Path

import pytest

from lemix_hpc.records.attempts import Attempt, AttemptStart, claim, lineage
from lemix_hpc.records.line_chain import acknowledged, line_chain, put_together
from lemix_hpc.records.schema import SAMPLES


def attempt(run_dir: Path, lines: bytes | None, samples: int | None = None) -> Attempt:
    """One that goes on from so many lines of the one before it, and has these."""
    started = claim(run_dir)
    inherits = None if samples is None else started.number - 1
    started.start(AttemptStart(time=0.0, host="h", inherits=inherits, samples=samples))
    started.make_current()
    if lines is not None:
        (started.path / SAMPLES).write_bytes(lines)
        started.publish(SAMPLES)
    return started


def lines(run_dir: Path) -> bytes:
    return b"".join(line for file in line_chain(lineage(run_dir), SAMPLES) for line in file.lines())


def test_each_file_counts_as_far_as_the_next_attempt_says(tmp_path: Path) -> None:
    attempt(tmp_path, b"a\nb\nlate\n")
    attempt(tmp_path, None, samples=2)
    attempt(tmp_path, b"none of it\n", samples=0)
    attempt(tmp_path, b"c\ncut off", samples=0)
    assert lines(tmp_path) == b"a\nb\nc\n"
    put_together(tmp_path, line_chain(lineage(tmp_path), SAMPLES), SAMPLES)
    assert (tmp_path / SAMPLES).read_bytes() == b"a\nb\nc\n" and not (tmp_path / SAMPLES).is_symlink()
    attempt(tmp_path, b"d\n", samples=1)
    assert (tmp_path / SAMPLES).read_bytes() == b"d\n", "of the attempt that goes on"
    assert lines(tmp_path) == b"a\nb\nc\nd\n"


def test_the_file_of_one_attempt_stays_a_link(tmp_path: Path) -> None:
    attempt(tmp_path, b"a\n")
    put_together(tmp_path, line_chain(lineage(tmp_path), SAMPLES), SAMPLES)
    assert (tmp_path / SAMPLES).is_symlink() and lines(tmp_path) == b"a\n"


@pytest.mark.parametrize(
    ("content", "whole"),
    [
        (None, 0),
        (b"", 0),
        (b'{"id":"a"}\n{"id":"b"}\n', 2),
        (b'{"id":"a"}\n{"id":"b', 1),
        (b'{"request":"x","of":2}\n{"request":"x","of":2}\n{"id":"c"}\n', 3),
        (b'{"id":"a"}\n{"request":"x","of":3}\n{"request":"x","of":3}\n{"requ', 1),
        (b'{"request":"x","of":1}\n{"request":"y","of":2}\n', 1),
    ],
)
def test_a_call_that_is_not_there_as_a_whole_was_never_acknowledged(
    tmp_path: Path, content: bytes | None, whole: int
) -> None:
    path = tmp_path / SAMPLES
    if content is not None:
        path.write_bytes(content)
    assert acknowledged(path) == whole
