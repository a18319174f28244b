"""A journal that is cut into parts, and whose writer dies at any byte, comes to the same as one that never was cut."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lemix_hpc.config.errors import UserError
from lemix_hpc.records import journal_writer as module
from lemix_hpc.records.attempts import Attempt, AttemptEnd, AttemptStart, EndReason, claim
from lemix_hpc.records.inheritance import Inheritance, inherit
from lemix_hpc.records.journal import (
    Accepted,
    Answered,
    Changed,
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
    journal_parts,
)
from lemix_hpc.records.journal_writer import Journal
from lemix_hpc.records.schema import ServedTask, TrainedTask
from tests.records.attempt_files import open_files, outcomes, start, write, write_all

NODES = 2
HEADERS = (("content-type", "application/json"),)


@dataclass
class Disk:
    """Takes so many bytes, each change of a name being one, before everything ends."""

    left: float
    patch: pytest.MonkeyPatch

    def __post_init__(self) -> None:
        write = os.pwrite

        def pwrite(file: int, content: bytes, offset: int) -> int:
            # Reserved space has zeros: what ends with some is whole without them.
            needed = len(content.rstrip(b"\0"))
            done = write(file, content if needed <= self.left else content[: max(0, int(self.left))], offset)
            self._spend(needed)
            return done

        self.patch.setattr(os, "pwrite", pwrite)
        for name in ("rename", "unlink", "ftruncate"):
            self.patch.setattr(os, name, self._after_spending(getattr(os, name)))

    def _after_spending(self, do: Callable[..., None]) -> Callable[..., None]:
        def spend(*arguments: Any, **keywords: Any) -> None:
            self._spend(1)
            do(*arguments, **keywords)

        return spend

    def _spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise SystemExit  # the thread ends without a word


@dataclass
class Load:
    """What may happen next in a run that has come so far."""

    inherited: Inheritance
    records: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.number = self.inherited.next_number
        self.open = {number: accepted.id for number, accepted in self.inherited.waiting.items()}
        over = self.inherited.done
        self.cut = [cut for cut in self.inherited.cuts if cut.group not in over]
        self.groups = max((cut.group + 1 for cut in self.inherited.cuts), default=self.inherited.behind.groups)
        self.text = 2 * self.groups
        self.stepped: list[TrainedTask] = []
        self.versions = {node: self.inherited.versions.get(node, 0) for node in range(NODES)}

    def happen(self, kind: int, pick: int) -> None:
        time = self.inherited.clock + len(self.records)
        if kind == 0:
            accepted = Accepted(self.number, f"r{self.number}", time, 3, "d")
            self.open[self.number] = accepted.id
            self.number += 1
            self.records.append(accepted)
        elif kind in (1, 2, 3) and self.open:
            number = sorted(self.open)[pick % len(self.open)]
            if kind == 1:
                self.records.append(Placed(number, pick % NODES))
            elif kind == 2:
                status = (200, 400)[pick % 2]
                self.records.append(Answered(number, self.open[number], "d", time, status, HEADERS, b"{}"))
            else:
                outcome: Any = ("finished", "lost")[pick % 2]
                task = ServedTask(self.open.pop(number), outcome, 0.5, 3, finished=time, output=[pick], number=number)
                self.records.append(Ended(msgspec.structs.replace(task, key="k" if pick % 3 else None)))
        elif kind == 4:
            came = (self.groups + 1,) if pick % 2 else ()
            ids = (f"t{self.text}", f"posted{self.groups}" if came else f"t{self.text + 1}")
            group = GroupCut(self.groups, ids, (64, 64), (0, self.text), came)
            self.groups, self.text = self.groups + 1, self.text + 2
            self.cut.append(group)
            self.records += [group, GroupPlaced(group.group, pick % NODES)]
        elif kind == 5 and self.cut:
            cut = self.cut.pop(pick % min(2, len(self.cut)))
            node = pick % NODES
            self.versions[node] += 1
            version = self.versions[node]
            self.records.append(Stepped(node, (cut.group,), version, time, skipped=pick % 5 == 0))
            self.stepped += [
                TrainedTask(id, "finished", 0.5, 64, node, finished=time, step=version, loss=float("nan"))
                for id in cut.ids
            ]
        elif kind == 6 and self.stepped:
            self.records.append(Trained(self.stepped.pop(0)))
        elif kind == 7:
            self.records.append(Changed("policy.max_hold_s", str(pick), time))


def essence(inherited: Inheritance) -> dict[str, Any]:
    """What the next attempt does with it, wherever it was found."""
    over, behind = inherited.done, inherited.behind
    left = [cut for cut in inherited.cuts if cut.group not in over]
    counted = inherited.tally.copy()
    for task in inherited.served:
        counted.add(task)
    lost = sum(task.loss is not None for task in inherited.trained)
    return {
        "waiting": inherited.waiting,
        "answers": inherited.answers,
        "poison": inherited.poison,
        "numbers": (inherited.next_number, inherited.clock, inherited.steps, inherited.skipped, inherited.versions),
        "changes": inherited.changes,
        "lost": inherited.lost,
        "tally": msgspec.to_builtins(counted),
        "left": [(cut, inherited.places.get(cut.group)) for cut in left],
        "next group": max((cut.group + 1 for cut in inherited.cuts), default=behind.groups),
        "cut": behind.micro_batches + sum(len(cut.ids) for cut in inherited.cuts),
        "posted": [*behind.posted, *(count for cut in inherited.cuts for count in cut.posted)],
        "trained": inherited.trained_before + len(inherited.trained),
        "lost losses": inherited.lost_losses + lost,
        "damage": [told for told in inherited.damage if "was never safe on the disk" not in told],
    }


EVENTS = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 9)), max_size=25)
ENDS: st.SearchStrategy[EndReason | None] = st.sampled_from([None, "error", "killed"])
ATTEMPTS = st.lists(st.tuples(EVENTS, st.integers(0, 6000), ENDS, st.booleans()), min_size=1, max_size=4)
SAVED = st.one_of(st.none(), st.dictionaries(st.integers(0, NODES - 1), st.integers(1, 4)))


def die(
    run_dir: Path,
    inherited: Inheritance,
    records: list[Record],
    left: int,
    saved: Mapping[int, int] | None,
    *,
    all_lines: bool,
) -> int:
    """An attempt whose writer dies after so many bytes. Returns how many of its records were safe."""
    attempt = claim(run_dir)
    start(attempt, inherited)
    with pytest.MonkeyPatch.context() as patch:
        Disk(left, patch)
        recorder, journal = open_files(attempt, inherited, lambda: saved)
        for record in records:
            write(recorder, [record])
            while not (safe := journal.flush(0.002)) and journal._thread.is_alive():
                pass
            if not safe:
                break
    if journal._thread.is_alive():
        journal.close()
    if all_lines:
        recorder.close()
    return journal.synced


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@settings(max_examples=40, deadline=None)
@given(ATTEMPTS, SAVED, st.integers(40, 600))
def test_whatever_is_cut_comes_to_the_same(
    attempts: list[tuple[list[tuple[int, int]], int, EndReason | None, bool]],
    saved: dict[int, int] | None,
    size: int,
) -> None:
    # Training goes on from weights that are not older.
    versions = None if saved is None else {node: saved.get(node, 0) + node for node in range(NODES)}
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "RESERVE", 4096)
        for sync in ("fsync", "fdatasync"):  # it is not the power that fails
            patch.setattr(os, sync, lambda file: None)  # noqa: ARG005
        cut, whole = Path(directory, "cut"), Path(directory, "whole")
        for path in (cut, whole):
            path.mkdir()
        for events, left, end, all_lines in attempts:
            known, expected = inherit(cut, versions), inherit(whole, versions)
            assert essence(known) == essence(expected)
            load = Load(expected)
            for kind, pick in events:
                load.happen(kind, pick)
            patch.setattr(module, "PART", size)
            safe = die(cut, known, load.records, left, saved, all_lines=all_lines)
            patch.setattr(module, "PART", 1 << 20)
            attempt = claim(whole)
            start(attempt, expected)
            write_all(attempt, expected, load.records[:safe])
            for path in (cut, whole):
                if end is not None:
                    Attempt(path / "attempts" / str(attempt.number)).end(AttemptEnd(end, "", 0.0))
        known, expected = inherit(cut, versions), inherit(whole, versions)
        assert essence(known) == essence(expected)
        for path, inherited in ((cut, known), (whole, expected)):
            attempt = claim(path)
            start(attempt, inherited)
            write_all(attempt, inherited, [])
        names = [sorted(repr(task) for task in outcomes(path)) for path in (cut, whole)]
        assert names[0] == names[1], "each outcome that counts is in one of the files, once"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "RESERVE", 4096)
    monkeypatch.setattr(module, "PART", 2000)
    yield


def answered(count: int, first: int = 0) -> list[Record]:
    records: list[Record] = []
    for number in range(first, first + count):
        task = ServedTask(f"r{number}", "finished", 0.5, 3, finished=1.0, output=[1] * 50, number=number)
        records += [Accepted(number, task.id, 0.5, 3), Placed(number, 0), Ended(task)]
    return records


def served(path: Path, count: int) -> tuple[Attempt, Inheritance]:
    """An attempt that has answered so many requests more, each safe before the next one came."""
    inherited = inherit(path, None)
    attempt = claim(path)
    start(attempt, inherited)
    recorder, journal = open_files(attempt, inherited)
    for record in answered(count, inherited.next_number):
        write(recorder, [record])
        assert journal.flush(60)
    journal.close()
    recorder.close()
    return attempt, inherited


@pytest.mark.usefixtures("small")
def test_a_journal_is_as_long_as_what_is_open_however_much_was_answered(tmp_path: Path) -> None:
    for count in (50, 150):
        attempt, _ = served(tmp_path, count)
        parts = journal_parts(attempt.path)
        assert len(parts) == 2 and parts[-1] > 5, "the last two stay"
        assert sum(journal_part(attempt.path, number).stat().st_size for number in parts) < 8000
    inherited = inherit(tmp_path, None)
    assert (inherited.tally.total + len(inherited.served), inherited.next_number) == (200, 200)
    assert len(inherited.served) < 40, "all others are in a file of tasks"
    assert [task.id for task in outcomes(tmp_path)] == [f"r{number}" for number in range(200)]


@pytest.mark.usefixtures("small")
def test_a_damaged_beginning_is_named_and_the_part_before_it_is_read(tmp_path: Path) -> None:
    attempt, _ = served(tmp_path, 60)
    before = inherit(tmp_path, None)
    newest = journal_part(attempt.path, journal_parts(attempt.path)[-1])
    content = bytearray(newest.read_bytes())
    content[20] ^= 1
    newest.write_bytes(content)
    found = inherit(tmp_path, None)
    assert len(found.damage) == 1 and str(newest) in found.damage[0]
    assert (found.waiting, found.next_number, found.clock) == (before.waiting, before.next_number, before.clock)
    served(tmp_path, 1)
    assert [task.id for task in outcomes(tmp_path)] == [f"r{number}" for number in range(61)]
    shutil.rmtree(tmp_path / "attempts" / "1")
    older = journal_part(attempt.path, journal_parts(attempt.path)[-2])
    older.write_bytes(b"\1" + older.read_bytes()[1:])
    with pytest.raises(UserError, match=f"{older}: the beginning is damaged, and so is that of each later part"):
        inherit(tmp_path, None)


def test_a_beginning_of_another_version_is_told(tmp_path: Path) -> None:
    attempt = claim(tmp_path)
    attempt.start(AttemptStart(time=0.0, host="h"))
    other = msgspec.msgpack.encode(Folded(msgspec.Raw(msgspec.msgpack.encode({"waiting": 7}))))
    journal_part(attempt.path, 1).write_bytes(frame(other, 0))
    with pytest.raises(UserError, match=r"journal\.000001\.bin: not a journal that this version can read"):
        inherit(tmp_path, None)


def test_a_run_of_a_version_that_did_not_cut_is_told_and_can_be_reported(tmp_path: Path) -> None:
    """Each attempt had one journal, and copied into its `tasks.jsonl` what those before it had there."""
    for number, inherits in ((0, None), (1, 0)):
        attempt = claim(tmp_path)
        records = [msgspec.msgpack.encode(record) for record in answered(2, 2 * number)]
        content = b"".join(frame(record, place) for place, record in enumerate(records))
        journal_part(attempt.path, 0).write_bytes(content)
        attempt.start(AttemptStart(time=0.0, host="h", inherits=inherits, journal_bytes=len(content)))
        lines = [msgspec.json.encode(r.task) for r in answered(2 * number + 2) if isinstance(r, Ended)]
        (attempt.path / "tasks.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    assert [task.id for task in outcomes(tmp_path)] == ["r0", "r1", "r2", "r3"]
    with pytest.raises(UserError, match=r"journal\.bin: not a journal that this version can go on from"):
        inherit(tmp_path, None)


def test_a_disk_that_lets_no_part_begin_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESERVE", 4096)
    monkeypatch.setattr(module, "PART", 500)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_written_file", full)
        attempt, _ = served(tmp_path, 20)
    assert journal_parts(attempt.path) == [1]
    assert [task.id for task in inherit(tmp_path, None).served] == [f"r{number}" for number in range(20)]


def test_who_was_left_behind_cuts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 500)

    def left_behind() -> None:
        raise OSError(116, "a later attempt goes on with the run")

    journal = Journal(tmp_path, settle=left_behind)
    for record in answered(20):
        journal.append(record)
        assert journal.flush(60)
    journal.close()
    assert journal_parts(tmp_path) == [1]
