"""Logs on a disk that takes nothing for a while."""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lemix_hpc.launch.log_stream import MOST_KEPT, LogStream
from tests.small_disk import SmallDisk, small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", 1) as disk:
        yield disk


def test_nobody_dies_of_a_log_and_what_was_said_comes_later(disk: SmallDisk) -> None:
    path = disk.view / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    stream = io.TextIOWrapper(io.BufferedWriter(LogStream(descriptor)), line_buffering=True)
    print("before", file=stream, flush=True)
    disk.fill()
    lines = [f"line {number} of many" for number in range(2 * MOST_KEPT // 20)]
    for line in lines:
        print(line, file=stream, flush=True)
    disk.free()
    print("after", file=stream, flush=True)
    os.close(descriptor)
    first, *kept, last, note = path.read_text().splitlines()
    assert first == "before"
    assert len(kept) > 1000 and kept == lines[: len(kept)]
    missing = sum(len(line) + 1 for line in lines[len(kept) :])
    assert [last, note] == ["after", f"[{missing} bytes of this log are missing: the disk was full]"]
