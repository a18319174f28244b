"""A full file system is told at the start; one whose server goes away for a moment ends nobody who looks at runs."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lemix_hpc.cli.live.picture import pictures
from lemix_hpc.launch import logs
from lemix_hpc.launch.registry import register
from lemix_hpc.launch.rundir import RunDir, RunRecord
from lemix_hpc.launch.start import StartedRun
from lemix_hpc.launch.states import FINAL
from lemix_hpc.records.attempts import AttemptEnd, claim
from lemix_hpc.records.schema import Progress
from tests.cli.conftest import Command
from tests.small_disk import SmallDisk, small_disk

RECORD = RunRecord("away", "local", 1.0, ["lemix"], "elsewhere", "me", "0", 3)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", 1) as disk:
        yield disk


def test_a_full_file_system_is_told_at_the_start(disk: SmallDisk, recipe: Path, lemix: Command) -> None:
    if disk.prefix:
        pytest.skip("it is in a namespace of its own")
    done = lemix("run", "--dry-run", recipe, "--cluster", "local", "--out", disk.path / "run")
    assert done.returncode == 0 and "MB left for you, and the run will write some 17 MB of records" in done.stderr
    disk.fill()
    for command in (["run"], ["submit"], ["run", "--dry-run"]):
        done = lemix(*command, recipe, "--cluster", "local", "--out", disk.path / "run")
        assert done.returncode == 2
        assert done.stderr.startswith(
            f"{disk.path}/run: the run directory cannot be made: No space left on device; make room"
        )
        assert "Traceback" not in done.stderr
        assert not (disk.view / "run").exists(), "it may be given again"
    assert "No space left" in lemix("simulate", recipe, "--out", disk.path / "run").stderr


WRITES = ["write_record", "start_in"]


@pytest.mark.parametrize("name", WRITES)
def test_a_file_system_that_fills_up_while_a_run_is_made(
    name: str, recipe: Path, inside: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    owner = "lemix_hpc.launch.rundir.RunDir" if name == "write_record" else "lemix_hpc.launch.start"
    monkeypatch.setattr(f"{owner}.{name}", full)
    done = inside("submit", recipe, "--cluster", "local", "--out", "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert "out: the run directory cannot be made: No space left on device; make room, or choose another" in done.stderr
    assert not (tmp_path / "out").exists()


class Away:
    """Makes one or all looks at files below a directory fail as NFS does when a server is away."""

    def __init__(self, below: Path) -> None:
        self._below = str(below)
        self.looks = 0
        self.failing: Callable[[int], bool] = lambda _: False

    def check(self, path: Any) -> None:
        if isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(self._below):
            self.looks += 1
            if self.failing(self.looks):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), os.fsdecode(path))


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run on another host, with a picture, a log and an attempt, in the list of runs."""
    run = RunDir(tmp_path / "nfs" / "away")
    run.logs.mkdir(parents=True)
    run.write_record(RECORD)
    run.progress.write_bytes(msgspec.json.encode(Progress("running", served=3, requests=5)))
    claim(run.path)
    run.rank_log(0, 0).parent.mkdir()
    run.rank_log(0, 0).write_text("one\ntwo\n")
    register(run)
    return run


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Away:
    away = Away(tmp_path / "nfs")
    for owner, name in ((os, "stat"), (os, "lstat"), (os, "scandir"), (os, "listdir"), (os, "open"), (io, "open")):
        real = getattr(owner, name)

        def looked(path: Any, *args: Any, _real: Any = real, **kwargs: Any) -> Any:
            away.check(path)
            return _real(path, *args, **kwargs)

        monkeypatch.setattr(owner, name, looked)
    monkeypatch.setattr("time.sleep", lambda _: None)
    return away


def _every_single_look(away: Away, use: Callable[[], object]) -> Iterator[None]:
    """Use it with one look after the other failing, and with all of them."""
    away.looks, away.failing = 0, lambda _: False
    use()
    for failing in range(1, away.looks + 1):
        away.looks, away.failing = 0, lambda look, failing=failing: look == failing  # type: ignore[misc]
        yield
    away.looks, away.failing = 0, lambda _: True
    yield
    away.failing = lambda _: False


@pytest.mark.usefixtures("run")
def test_ps_shows_all_runs_whatever_look_fails(away: Away, inside: Command, tmp_path: Path) -> None:
    sound = RunDir(tmp_path / "runs" / "sound")
    sound.logs.mkdir(parents=True)
    sound.write_record(msgspec.structs.replace(RECORD, id="sound"))

    def ps() -> dict[str, Any]:
        done = inside("ps", "--json")
        assert done.returncode == 0, done.stderr
        return {row["id"]: row for row in json.loads(done.stdout)}

    looks = 0
    for _ in _every_single_look(away, ps):
        rows = ps()
        assert rows.keys() == {"away", "sound"} and rows["sound"]["state"] == "UNKNOWN"
        looks += 1
    assert looks > 5
    assert "damage" not in ps()["away"], "the entry of a run that was away stays in the list"
    assert inside("ps").returncode == 0


def test_following_outlives_every_look_that_fails(away: Away, run: RunDir) -> None:
    def follow() -> None:
        some = pictures(StartedRun(run, RECORD))
        for _ in range(3):
            next(some)

    for _ in _every_single_look(away, follow):
        follow()


@pytest.mark.parametrize("failing", range(1, 6))
def test_logs_are_followed_over_looks_that_fail(
    failing: int, away: Away, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    states = iter(["RUNNING", "RUNNING", "RUNNING"])

    def run_state(*_: Any) -> str:
        if (state := next(states, "COMPLETED")) == "RUNNING" and not lines:
            away.looks, away.failing = 0, lambda look: look == failing
        return state

    monkeypatch.setattr(logs, "run_state", run_state)
    logs.print_logs(run, 0, follow=True, write=lines.append)
    assert lines == ["one", "two"]


def test_following_logs_gives_a_file_system_up_that_never_comes_back(
    away: Away, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_state(*_: Any) -> str:
        away.failing = lambda _: True
        return "RUNNING"

    monkeypatch.setattr(logs, "run_state", run_state)
    with pytest.raises(OSError, match="Stale"):
        logs.print_logs(run, 0, follow=True, write=print)


@pytest.mark.usefixtures("run")
def test_other_commands_name_the_file_system(away: Away, inside: Command) -> None:
    away.failing = lambda _: True
    for command in ("logs", "report", "stop", "cancel", "resume", "url"):
        done = inside(command, "away")
        assert done.returncode in (1, 2) and "Stale file handle" in done.stderr, command


def test_the_end_is_seen_when_the_server_is_back(away: Away, run: RunDir) -> None:
    some = pictures(StartedRun(run, RECORD))
    next(some)
    attempt = run.last_attempt
    assert attempt is not None
    attempt.end(AttemptEnd("finished", "all is done", 1.0))
    away.failing = lambda _: True
    assert next(some).state not in FINAL
    away.failing = lambda _: False
    assert next(some).state == "COMPLETED"
