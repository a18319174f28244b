"""Lines whose disk takes nothing for a while."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lemix_hpc.records.files import overwrite, patiently, replace
from lemix_hpc.records.line_file import BUFFER, LineFile
from lemix_hpc.records.schema import Progress
from lemix_hpc.records.writer import Recorder
from tests.small_disk import SmallDisk, small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", 1) as disk:
        yield disk


def test_lines_wait_for_room(disk: SmallDisk) -> None:
    path = disk.view / "lines"
    file = LineFile(path)
    file.write(b"before\n")
    file.sync()
    disk.fill()
    lines = [b"%d\n" % number for number in range(5000)]
    for line in lines:
        file.write(line)
    assert not file.flush() and file.trouble == "No space left on device"
    with pytest.raises(OSError, match="No space left"):
        file.sync()
    disk.free()
    file.write(b"after\n")
    file.sync()
    file.close()
    assert file.trouble is None
    assert path.read_bytes() == b"before\n" + b"".join(lines) + b"after\n"


def test_no_more_is_kept_than_asked_for_and_no_line_is_cut(disk: SmallDisk) -> None:
    path = disk.view / "lines"
    file = LineFile(path, most=2 * BUFFER)
    disk.fill()
    line = b"x" * 99 + b"\n"
    for _ in range(3000):
        file.write(line)
    kept = 2 * BUFFER // 100
    assert file.left_out == 3000 - kept
    disk.free()
    assert file.flush()
    file.close()
    assert path.read_bytes() == line * kept


def test_a_full_disk_shows_the_live_figures_in_place(disk: SmallDisk) -> None:
    recorder = Recorder(disk.view)
    recorder.progress(Progress("running", message="a message that is long", served=1))
    disk.fill()
    recorder.progress(Progress("running", served=2))
    assert b'"served":2' in (disk.view / "progress.json").read_bytes()
    assert recorder.trouble == "No space left on device"
    assert not (disk.view / "progress.json.partial").exists()
    disk.free()
    recorder.progress(Progress("running", served=3))
    assert recorder.trouble is None and b'"served":3' in (disk.view / "progress.json").read_bytes()
    recorder.close()


def test_what_is_shorter_than_before_is_no_other_json(tmp_path: Path) -> None:
    replace(tmp_path / "a.json", b'{"a": [1, 2, 3]}')
    overwrite(tmp_path / "a.json", b'{"a": 1}')
    assert (tmp_path / "a.json").read_bytes() == b'{"a": 1}        '


def test_a_disk_is_waited_for_until_it_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def forbidden() -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    with pytest.raises(OSError, match="No space left"):
        patiently(full, 0.0)
    with pytest.raises(OSError, match="No space left"):
        patiently(full, 600.0, over=lambda: True)
    with pytest.raises(OSError, match="Permission denied"):
        patiently(forbidden, 600.0)
    assert capsys.readouterr().out == ""
