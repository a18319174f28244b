"""A run directory that a crash or a full disk has damaged hides no other run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from lemix_hpc.cli.live.picture import pictures
from lemix_hpc.launch import states
from lemix_hpc.launch.registry import register
from lemix_hpc.launch.rundir import RunDir, RunRecord
from lemix_hpc.launch.start import StartedRun
from lemix_hpc.records.attempts import AttemptEnd, claim
from lemix_hpc.records.schema import Progress
from tests.cli.conftest import Command
from tests.inputs.permissions import bound_by_modes

RECORD = RunRecord("sound", "local", 1.0, ["lemix"], "elsewhere", "me", "0", 3)

DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(b'{"id": "so'),
    "not UTF-8": lambda path: path.write_bytes(b'{"id": "\xff"}'),
    "nested too deep": lambda path: path.write_bytes(b'{"id": ' + b"[" * 100_000),
    "of another type": lambda path: path.write_bytes(b"[1]"),
    "a directory": Path.mkdir,
    "a pipe": os.mkfifo,
    "a broken link": lambda path: path.symlink_to("nowhere"),
}


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], RunDir]:
    """A run of this name with one picture of its progress, in the list of runs."""

    def run(name: str) -> RunDir:
        run = RunDir(tmp_path / "runs" / name)
        run.logs.mkdir(parents=True)
        run.write_record(msgspec.structs.replace(RECORD, id=name))
        run.progress.write_bytes(msgspec.json.encode(Progress("running", served=3, requests=5)))
        register(run)
        return run

    return run


@pytest.mark.parametrize("name", ["run.json", "progress.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_one_damaged_run_hides_no_other(name: str, damage: str, make: Callable[[str], RunDir], inside: Command) -> None:
    make("sound")
    damaged = make("torn").path / name
    damaged.unlink()
    DAMAGES[damage](damaged)
    done = inside("ps", "--json")
    assert done.returncode == 0
    rows = {row["id"]: row for row in json.loads(done.stdout)}
    assert (rows["sound"]["state"], rows["sound"]["served"]) == ("UNKNOWN", 3)
    if (name, damage) != ("run.json", "a broken link"):
        assert (rows["torn"]["state"], rows["torn"]["served"]) == ("UNKNOWN", 0)
    assert ("damage" in rows.get("torn", {})) == (name == "run.json" and "torn" in rows)
    shown = inside("ps", "--all")
    assert shown.returncode == 0 and "sound" in shown.stdout
    assert inside("logs", "sound").stderr.startswith("sound: there is no log of this run yet")


def test_a_damaged_run_is_named_by_the_commands_that_need_it(make: Callable[[str], RunDir], inside: Command) -> None:
    run = make("torn")
    run.record.write_text("{")
    for command in ("report", "logs", "stop", "cancel", "resume"):
        done = inside(command, "torn")
        assert done.returncode == 2
        assert done.stderr.startswith(f"{run.record}: not a record that this version can read: ")


def test_a_damaged_end_and_report_are_named(make: Callable[[str], RunDir], inside: Command) -> None:
    run = make("torn")
    attempt = claim(run.path)
    (attempt.path / "end.json").write_text("{")
    rows = json.loads(inside("ps", "--json").stdout)
    assert rows[0]["state"] == "UNKNOWN" and "end.json: not a file that this version can read" in rows[0]["damage"]
    done = inside("report", "torn")
    assert (done.returncode, "end.json: not a file" in done.stderr) == (2, True)


def test_entries_of_the_list_that_are_damaged_are_left_out(
    make: Callable[[str], RunDir], inside: Command, tmp_path: Path
) -> None:
    make("sound")
    entries = tmp_path / "state" / "lemix" / "runs"
    (entries / "bytes").write_bytes(b"\xff\n")
    (entries / "zero").write_bytes(b"a\0b\n")
    (entries / "long").write_text("x" * 5000)
    (entries / "folder").mkdir()
    assert [row["id"] for row in json.loads(inside("ps", "--json").stdout)] == ["sound"]


def test_closed_directories_hide_no_run_in_others(
    make: Callable[[str], RunDir], inside: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("sound")
    closed = tmp_path / "closed"
    hidden = RunDir(closed / "hidden")
    hidden.logs.mkdir(parents=True)
    hidden.write_record(RECORD)
    register(hidden)
    closed.chmod(0)
    with bound_by_modes():
        rows = {row["id"]: row for row in json.loads(inside("ps", "--json").stdout)}
        assert rows.keys() == {"sound", "hidden"}
        assert rows["hidden"]["damage"] == f"{hidden.record} cannot be read: Permission denied"
        for command in ("report", "logs", "resume"):
            done = inside(command, "closed/other")
            assert done.returncode == 2
            assert "no run has this id and what is called so cannot be looked at: Permission denied" in done.stderr
        monkeypatch.setenv("LEMIX_RUNS", str(closed / "runs"))
        listed = inside("ps")
        assert (listed.returncode, "sound" in listed.stdout) == (0, True)
        assert f"{closed}/runs: Permission denied; runs there are not shown" in listed.stderr
        monkeypatch.setenv("LEMIX_RUNS", str(tmp_path / "runs"))
        monkeypatch.setenv("XDG_STATE_HOME", str(closed))
        listed = inside("ps")
        assert (listed.returncode, "sound" in listed.stdout) == (0, True)
        assert f"{closed}/lemix/runs: Permission denied; runs that are listed there are not shown" in listed.stderr


def test_any_other_file_that_is_closed_to_the_user_is_named(make: Callable[[str], RunDir], inside: Command) -> None:
    run = make("sound")
    claim(run.path)
    logs = run.launcher_log(0).parent
    logs.mkdir()
    logs.chmod(0)
    with bound_by_modes():
        done = inside("logs", "sound")
    assert (done.returncode, done.stderr) == (2, f"{run.launcher_log(0)}: Permission denied\n")


def test_following_goes_on_with_the_picture_before(
    make: Callable[[str], RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make("sound")
    attempt = claim(run.path)
    some = pictures(StartedRun(run, RECORD))
    monkeypatch.setattr("time.sleep", lambda _: None)
    first = next(some)
    assert first.progress is not None and first.progress.served == 3
    run.progress.write_bytes(b'{"state"')
    (attempt.path / "end.json").write_bytes(b"{")
    before = next(some)
    assert (before.state, before.progress, before.ends) == (first.state, first.progress, first.ends)
    (attempt.path / "end.json").unlink()
    attempt.end(AttemptEnd("finished", "all is done", 1.0))
    last = list(some)[-1]
    assert (last.state, last.progress) == (states.OF_ENDS["finished"], first.progress)
