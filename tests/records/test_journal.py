"""The journal keeps what was safe, whatever happens to its file."""

import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.records import journal_writer as module
from lemix_hpc.records.fold import Fold, encode
from lemix_hpc.records.journal import (
    Accepted,
    Answered,
    Ended,
    Folded,
    GroupCut,
    GroupPlaced,
    Placed,
    Record,
    Stepped,
    Trained,
    frame,
    journal_part,
    read_fold,
    read_journal,
)
from lemix_hpc.records.journal_writer import Journal
from lemix_hpc.records.schema import ServedTask, TrainedTask

NUMBERS = st.integers(0, 2**40)
PAIRS = st.tuples(NUMBERS, NUMBERS)
TIMES = st.floats(0, 1e9)
IDS = st.text(max_size=20)
RECORDS: st.SearchStrategy[Record] = st.one_of(
    st.builds(Accepted, NUMBERS, IDS, TIMES, NUMBERS),
    st.builds(Answered, NUMBERS, IDS, IDS, TIMES, NUMBERS, st.tuples(st.tuples(IDS, IDS)), st.binary(max_size=99)),
    st.builds(Placed, NUMBERS, st.integers(0, 4096)),
    st.builds(
        lambda id, output: Ended(ServedTask(id, "finished", 0.5, 3, finished=1.0, output=output)),
        IDS,
        st.lists(NUMBERS, max_size=9),
    ),
    st.builds(lambda id, loss: Trained(TrainedTask(id, "finished", 0.5, 64, loss=loss)), IDS, TIMES),
    st.builds(
        GroupCut,
        NUMBERS,
        st.tuples(IDS, IDS),
        st.tuples(NUMBERS, NUMBERS),
        st.tuples(NUMBERS, NUMBERS),
        st.tuples(NUMBERS),
    ),
    st.builds(GroupPlaced, NUMBERS, st.integers(0, 4096)),
    st.builds(Stepped, st.integers(0, 4096), st.tuples(NUMBERS), NUMBERS, TIMES),
)


def written(path: Path, records: list[Record]) -> bytes:
    """What the file of a journal holds that was never closed, with these records on the disk."""
    path.unlink(missing_ok=True)
    journal = Journal(path.parent)
    for record in records:
        journal.append(record)
    assert journal.flush()
    content = path.read_bytes()
    journal.close()
    return content


BEGINNING = len(frame(msgspec.msgpack.encode(Folded(encode(Fold()))), 0))


def framed(record: Record) -> int:
    """Bytes of a record in the file."""
    return 16 + len(msgspec.msgpack.encode(record))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return journal_part(tmp_path, 1)


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal that is written anew in each example."""
    return journal_part(tmp_path_factory.mktemp("journals"), 1)


@pytest.fixture(scope="module", autouse=True)
def small_reserve() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "RESERVE", 4096)
        yield


@given(records=st.lists(RECORDS, min_size=1, max_size=30))
def test_reads_back_what_was_written(again: Path, records: list[Record]) -> None:
    path = again
    open_file = written(path, records)
    closed = read_journal(path)
    assert (closed.records, closed.damage, closed.length) == (records, [], path.stat().st_size)
    path.write_bytes(open_file)
    assert read_journal(path) == closed, "space that was reserved is not damage"


@given(records=st.lists(RECORDS, min_size=1, max_size=12), data=st.data())
def test_a_file_cut_anywhere_keeps_all_records_before(again: Path, records: list[Record], data: st.DataObject) -> None:
    path = again
    written(path, records)
    ends = list(itertools.accumulate(map(framed, records), initial=BEGINNING))
    assert ends[-1] == path.stat().st_size
    cut = data.draw(st.integers(0, ends[-1]))
    os.truncate(path, cut)
    content = read_journal(path)
    assert content.records == records[: max(0, sum(end <= cut for end in ends) - 1)]
    assert (read_fold(path) is None) == (cut < BEGINNING)
    assert bool(content.damage) == (content.length < cut), "a torn record is named"


@given(records=st.lists(RECORDS, min_size=1, max_size=12), data=st.data())
def test_a_flipped_byte_costs_one_record_and_is_named(again: Path, records: list[Record], data: st.DataObject) -> None:
    path = again
    written(path, records)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    before = len(read_journal(path, at).records)
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content + bytes(512))
    found = read_journal(path)
    if at < BEGINNING:
        assert (found.records, read_fold(path)) == (records, None)
    else:
        assert found.records == records[:before] + records[before + 1 :]
    assert len(found.damage) == 1
    assert str(path) in found.damage[0]


@given(garbage=st.binary(max_size=300))
def test_garbage_is_no_journal_and_no_crash(again: Path, garbage: bytes) -> None:
    path = again
    path.write_bytes(garbage)
    found = read_journal(path)
    assert (found.records, read_fold(path)) == ([], None)
    assert bool(found.damage) == bool(garbage.strip(b"\0"))


def test_records_behind_the_fence_do_not_count(path: Path) -> None:
    written(path, [Placed(0, 0)])
    fence = read_journal(path).length
    path.unlink()
    written(path, [Placed(0, 0), Placed(1, 0)])
    assert read_journal(path, fence).records == [Placed(0, 0)]


def test_a_journal_is_written_by_one_alone(path: Path) -> None:
    journal = Journal(path.parent)
    with pytest.raises(FileExistsError):
        Journal(path.parent)
    journal.close()


def test_what_the_records_count_on_is_safe_first(path: Path) -> None:
    on_disk: list[bool] = []
    journal = Journal(path.parent, first=lambda: on_disk.append(bool(read_journal(path).records)))
    journal.append(Placed(0, 0))
    assert journal.flush()
    journal.close()
    assert on_disk == [False, False], "before the beginning, and before the record"


def test_a_disk_that_takes_nothing_for_a_while_loses_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    full = [True]
    write = os.pwrite

    def pwrite(file: int, content: bytes, offset: int) -> int:
        if full[0] and offset:
            # Half of it gets there, as on a disk that fills up.
            write(file, content[: len(content) // 2], offset)
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, content, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    journal = Journal(path.parent)
    records: list[Record] = [Placed(number, 0) for number in range(5)]
    for record in records:
        journal.append(record)
    assert not journal.flush(timeout_s=0.1)
    assert (journal.synced, journal.trouble) == (0, "No space left on device")
    assert read_journal(path).records == records[:2]
    full[0] = False
    assert journal.flush(timeout_s=60)
    journal.close()
    assert journal.trouble is None
    assert read_journal(path).records == records


def test_a_disk_that_never_takes_it_is_told_at_the_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pwrite(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwrite", pwrite)
    journal = Journal(path.parent)
    journal.append(Placed(0, 0))
    with pytest.raises(OSError, match="not all of it could be written: Input/output error"):
        journal.close(timeout_s=0.1)


def test_a_file_that_the_server_forgot_is_opened_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    stale = [True]
    sync = os.fdatasync

    def fdatasync(file: int) -> None:
        if stale.pop() if stale else False:
            raise OSError(errno.ESTALE, "Stale file handle")
        sync(file)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    journal = Journal(path.parent)
    journal.append(Placed(7, 1))
    assert journal.flush(timeout_s=60)
    journal.close()
    assert read_journal(path).records == [Placed(7, 1)]
