"""What a run does while its disk takes nothing."""

from types import SimpleNamespace
from typing import Any

import pytest

from lemix_hpc.records.schema import DiskFacts
from lemix_hpc.runtime.scheduler.disk_watch import DiskWatch


class World:
    def __init__(self) -> None:
        recorder: Any = SimpleNamespace(trouble=None, left_out=0)
        journal: Any = SimpleNamespace(trouble=None, full=False, waiting=0)
        self.recorder, self.journal = recorder, journal
        self.results: str | None = None
        self.held: list[str | None] = []
        self.time = 10.0
        self.watch = DiskWatch(recorder, journal, lambda: self.results, self.held.append, lambda: self.time)


def test_trouble_is_told_and_calls_are_turned_away_only_when_nothing_can_be_promised(
    capsys: pytest.CaptureFixture[str],
) -> None:
    world = World()
    world.watch.look()
    assert world.watch.trouble is None and world.watch.facts() is None
    world.recorder.trouble = "No space left on device"
    world.watch.look()
    world.time = 12.0
    world.watch.look()
    assert world.watch.trouble == "No space left on device" and world.held == []
    world.journal.full, world.journal.trouble, world.journal.waiting = True, "Disk quota exceeded", 7
    world.watch.look()
    assert world.watch.trouble == "Disk quota exceeded; 7 records of the journal wait"
    assert world.held == ["Disk quota exceeded"]
    world.recorder.left_out = 3
    assert world.watch.facts() == DiskFacts("Disk quota exceeded", 2.0, 3)
    world.journal.full, world.journal.trouble, world.journal.waiting = False, None, 0
    world.watch.look()
    assert world.held == ["Disk quota exceeded", None]
    world.recorder.trouble = None
    world.time = 15.0
    world.watch.look()
    assert world.watch.trouble is None
    world.time = 99.0
    world.results = "Stale file handle"
    world.watch.look()
    world.time = 100.0
    world.results = None
    world.watch.look()
    facts = world.watch.facts()
    assert facts is not None and (facts.why, facts.seconds) == ("Stale file handle", 6.0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[::2]] == ["the disk does not take everything"] * 2
    assert lines[1::2] == [f"the disk takes everything again, after {s} s" for s in ("5.0", "1.0")]
