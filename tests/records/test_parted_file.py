"""Lines that go through parts, whatever is left of the newest one, and in the middle of whatever a crash interrupts."""

import gzip
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.config.errors import UserError
from lemix_hpc.policy.events import Event, Tick
from lemix_hpc.records import event_log
from lemix_hpc.records.parted_file import PartedFile
from lemix_hpc.records.parts import compressed, part, parts, read_lines
from lemix_hpc.records.reader import read_run
from tests.small_disk import SmallDisk, small_disk

texts = st.lists(st.binary(max_size=40).map(lambda text: text.replace(b"\n", b"") + b"\n"), max_size=30)


def written(path: Path, lines: list[bytes], size: int) -> None:
    file = PartedFile(path, size=size)
    for line in lines:
        file.write(line)
    file.sync()
    file.close()


def read(path: Path) -> list[bytes]:
    return [line.text for line in read_lines(path)]


@given(texts, st.integers(1, 200), st.data())
def test_so_much_is_read_as_was_there_at_some_time(lines: list[bytes], size: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "x.jsonl"
        file = PartedFile(path, size=size)
        reaches = [file.reach]
        for line in lines:
            file.write(line)
            reaches.append(file.reach)
        file.settle()
        assert read(path) == lines, "on the disk, in whichever part"
        file.sync()
        file.close()
        count = data.draw(st.integers(0, len(lines)))
        assert [line.text for line in read_lines(path, reaches[count])] == lines[:count]
        if len(parts(path)) > 1 and reaches[count].part > 2:
            compressed(part(path, 1)).unlink(missing_ok=True)
            part(path, 1).unlink(missing_ok=True)
            first = sum(reach.part == 1 for reach in reaches)
            assert [line.text for line in read_lines(path, reaches[count])] == lines[first:count]


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@given(texts, st.integers(1, 200), st.data())
def test_all_is_read_back_in_order_torn_at_any_byte(lines: list[bytes], size: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "x.jsonl"
        written(path, lines, size)
        assert read(path) == lines
        assert not any(each.exists() for each in parts(path)), "they are compressed"
        newest = path.read_bytes()
        kept = data.draw(st.integers(0, len(newest)))
        path.write_bytes(newest[:kept])
        assert read(path) == lines[: len(lines) - newest.count(b"\n") + newest[:kept].count(b"\n")]


def test_parts_are_known_by_their_names_alone(directory: Path) -> None:
    path = directory / "x.jsonl"
    written(path, [b"%d\n" % number for number in range(1_000)], 100)
    assert {other.name for other in directory.iterdir()} == {
        path.name,
        *(compressed(each).name for each in parts(path)),
    }
    (directory / "x.000001.json").write_bytes(b"")
    (directory / "xx.000001.jsonl").write_bytes(b"")
    joined = b"".join(gzip.decompress(compressed(each).read_bytes()) for each in parts(path)) + path.read_bytes()
    assert joined == b"".join(read(path)), "as `zcat -f x.*.jsonl.gz x.jsonl` has it"


def test_whatever_a_crash_interrupts_no_line_is_lost_or_read_twice(directory: Path) -> None:
    path = directory / "x.jsonl"
    written(path, [b"1\n", b"2\n", b"3\n"], 4)
    first = compressed(part(path, 1))
    # The compressed file is whole, and the part was not removed; a part of another compressed file; nothing new was begun.
    part(path, 1).write_bytes(gzip.decompress(first.read_bytes()))
    first.with_name(f"{first.name}.partial").write_bytes(b"half of")
    path.rename(part(path, 2))
    assert read(path) == [b"1\n", b"2\n", b"3\n"]


def test_lines_are_added_and_parts_are_cut_while_somebody_reads(directory: Path) -> None:
    path = directory / "x.jsonl"
    file = PartedFile(path, size=4)
    for line in (b"1\n", b"2\n", b"3\n"):
        file.write(line)
    file.sync()
    reading = read_lines(path)
    for line in (b"4\n", b"5\n"):
        file.write(line)
    file.sync()
    file.close()
    assert [line.text for line in reading][:3] == [b"1\n", b"2\n", b"3\n"]
    assert read(path) == [b"1\n", b"2\n", b"3\n", b"4\n", b"5\n"]


def test_a_damaged_part_is_named(directory: Path) -> None:
    path = directory / "x.jsonl"
    written(path, [b"1\n", b"2\n", b"3\n"], 4)
    packed = compressed(part(path, 1))
    packed.write_bytes(packed.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"x\.000001\.jsonl\.gz: damaged.* Remove it to read the rest"):
        read(path)
    packed.unlink()
    assert read(path) == [b"3\n"]


def test_a_file_that_is_written_anew_has_no_parts_of_the_old_one(directory: Path) -> None:
    path = directory / "x.jsonl"
    written(path, [b"1\n"] * 9, 4)
    written(path, [b"2\n"], 4)
    assert read(path) == [b"2\n"]


def test_a_full_disk_neither_loses_a_part_nor_compresses_it(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", 1) as disk:
        _fill_while_parts_are_cut(disk)


def _fill_while_parts_are_cut(disk: SmallDisk) -> None:
    path, lines = disk.view / "x.jsonl", [b"%099d\n" % number for number in range(3_000)]
    file = PartedFile(path, size=20_000)
    for line in lines[:1_000]:
        file.write(line)
    disk.fill()
    for line in lines[1_000:]:
        file.write(line)
    assert not file.flush() and file.trouble == "No space left on device"
    disk.free()
    file.sync()
    file.close()
    assert file.left_out == 0 and read(path) == lines


def test_events_and_runs_are_read_through_their_parts(example_run: Path) -> None:
    events: list[Event] = [Tick(float(number)) for number in range(50)]
    written(example_run / event_log.EVENTS, [event_log.encode(event) for event in events], 100)
    assert list(event_log.read_events(example_run)) == events
    before = read_run(example_run)
    for name in ("spans.jsonl", "tasks.jsonl"):
        lines = (example_run / name).read_bytes().splitlines(keepends=True)
        written(example_run / name, lines, 300)
        assert len(parts(example_run / name)) > 1
    assert read_run(example_run) == before
