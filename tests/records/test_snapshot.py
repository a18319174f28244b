"""A snapshot and the journals after it come to the same as all journals, and a damaged one is not used."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.records import snapshot
from lemix_hpc.records.attempts import AttemptEnd, AttemptStart, EndReason, claim
from lemix_hpc.records.files import replace
from lemix_hpc.records.inheritance import Inheritance, inherit
from lemix_hpc.records.journal import (
    Accepted,
    Answered,
    Ended,
    GroupCut,
    GroupPlaced,
    Journal,
    Placed,
    Record,
    Stepped,
    Trained,
)
from lemix_hpc.records.schema import ServedTask, TrainedTask

NUMBERS = st.integers(0, 9)
TIMES = st.floats(0, 100)
RECORDS: st.SearchStrategy[Record] = st.one_of(
    st.builds(lambda n, time: Accepted(n, f"r{n}", time, 3, "d"), NUMBERS, TIMES),
    st.builds(Placed, NUMBERS, NUMBERS),
    st.builds(
        lambda n, time, status: Answered(n, f"r{n}", "d", time, status, (("a", "b"),), b"\0\xff"),
        NUMBERS,
        TIMES,
        st.sampled_from([200, 400]),
    ),
    st.builds(lambda n: Ended(ServedTask(f"r{n}", "finished", 0.5, 3, finished=1.0, output=[n], number=n)), NUMBERS),
    st.builds(
        lambda n, step: Trained(TrainedTask(f"t{n}", "finished", 0.5, 8, node=n % 3, step=step)), NUMBERS, NUMBERS
    ),
    st.builds(lambda n: GroupCut(n, (f"t{n}",), (8,), (0, 0), ()), NUMBERS),
    st.builds(GroupPlaced, NUMBERS, st.integers(0, 2)),
    st.builds(lambda n, v, t: Stepped(n % 3, (n,), v, t), NUMBERS, NUMBERS, TIMES),
)
ENDS = st.sampled_from([None, "error", "out-of-memory", "killed"])
VERSIONS = st.one_of(st.none(), st.dictionaries(st.integers(0, 2), NUMBERS))
ATTEMPTS = st.lists(st.tuples(st.lists(RECORDS, max_size=15), ENDS, VERSIONS), min_size=1, max_size=5)


def attempt(
    run_dir: Path, records: list[Record], end: EndReason | None, versions: dict[int, int] | None
) -> Inheritance:
    """One that goes on from those before it, keeps a snapshot, and ends."""
    made = claim(run_dir)
    inherited = inherit(run_dir, versions, made)
    before = inherited.last.number if inherited.last is not None else None
    made.start(
        AttemptStart(
            time=0.0,
            host="h",
            inherits=before,
            journal_bytes=inherited.journal_bytes,
            clock=inherited.clock,
            versions=inherited.versions,
        )
    )
    journal = Journal(made.journal)
    for record in records:
        journal.append(record)
    journal.close()
    if end is not None:
        made.end(AttemptEnd(end, "", 0.0))
    return inherited


def snapshots(run_dir: Path) -> list[Path]:
    return sorted(run_dir.glob(f"attempts/*/{snapshot.SNAPSHOT}"))


@given(ATTEMPTS, VERSIONS)
def test_a_snapshot_and_what_follows_come_to_the_same_as_all(
    attempts: list[tuple[list[Record], EndReason | None, dict[int, int] | None]], versions: dict[int, int] | None
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory)
        for records, end, back in attempts:
            attempt(run_dir, records, end, back)
        by_snapshot = inherit(run_dir, versions)
        assert len(snapshots(run_dir)) == min(2, len(attempts) - 1), "the last two stay"
        for path in snapshots(run_dir):
            path.unlink()
        assert inherit(run_dir, versions) == by_snapshot


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three attempts, each with an answered request more."""
    run_dir = tmp_path_factory.mktemp("run")
    for number in range(3):
        answered = Ended(ServedTask(f"r{number}", "finished", 0.5, 3, finished=1.0, number=number))
        attempt(run_dir, [Accepted(number, f"r{number}", 0.5, 3), answered, Placed(7, 0)], "killed", None)
    return run_dir


@given(data=st.data())
def test_a_damaged_snapshot_is_named_and_the_journals_are_read(three: Path, data: st.DataObject) -> None:
    before = inherit(three, None)
    with tempfile.TemporaryDirectory() as directory:
        shutil.copytree(three / "attempts", Path(directory) / "attempts")
        newest = snapshots(Path(directory))[-1]
        content = bytearray(newest.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[at] ^= data.draw(st.integers(1, 255))
        else:
            del content[at:]
        newest.write_bytes(content)
        found = inherit(Path(directory), None)
    assert (found.served, found.clock, found.next_number) == (before.served, before.clock, before.next_number)
    assert len(found.damage) == 1 and str(newest) in found.damage[0]


def test_the_journals_before_a_snapshot_are_not_read(three: Path, tmp_path: Path) -> None:
    shutil.copytree(three / "attempts", tmp_path / "attempts")
    (tmp_path / "attempts" / "0" / "journal.bin").write_bytes(b"gone")
    (tmp_path / "attempts" / "1" / "journal.bin").write_bytes(b"gone")
    assert [task.id for task in inherit(tmp_path, None).served] == ["r0", "r1", "r2"]


def test_a_snapshot_of_other_journals_is_not_used(three: Path, tmp_path: Path) -> None:
    shutil.copytree(three / "attempts", tmp_path / "attempts")
    first, second = snapshots(tmp_path)
    replace(second, first.read_bytes())
    found = inherit(tmp_path, None)
    assert [task.id for task in found.served] == ["r0", "r1", "r2"]
    assert "it is of other journals" in found.damage[0]


def test_a_disk_that_takes_no_snapshot_stops_nobody(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(three / "attempts", tmp_path / "attempts")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot, "replace", full)
    assert len(attempt(tmp_path, [], None, None).served) == 3
    assert "could not be folded into" in capsys.readouterr().out
    assert len(snapshots(tmp_path)) == 2
