"""Run directories of other versions, and what a submission that was cut off leaves: a word on it, never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lemix_hpc import __version__
from lemix_hpc.launch.rundir import RunDir, RunRecord
from lemix_hpc.records.attempts import AttemptEnd, AttemptStart, claim
from lemix_hpc.records.schema import FACTS, RunFacts
from tests.cli.conftest import RECIPE, Command

RECORD = RunRecord("other", "local", 1.0, ["lemix"], "elsewhere", "me", "9.0", 3)
SAID = f" (lemix 9.0 made this run, and this is lemix {__version__})"
FINISHED = {"reason": "finished", "message": "all is done", "time": 2.0}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., RunDir]:
    """A drained run of another version, with one attempt; `record` has other keys of its run.json."""

    def run(name: str = "other", **record: Any) -> RunDir:
        run = RunDir(tmp_path / "runs" / name)
        run.logs.mkdir(parents=True)
        run.record.write_text(json.dumps(msgspec.to_builtins(RECORD) | {"id": name} | record))
        run.recipe.write_text(RECIPE)
        attempt = claim(run.path)
        attempt.start(AttemptStart(time=1.0, host="elsewhere"))
        attempt.end(AttemptEnd("drained", "asked to stop", 2.0))
        (attempt.path / FACTS).write_bytes(msgspec.json.encode(RunFacts("p", "emulated", 1, 2, [1.0], 1.0, 1.0, 0)))
        for records in ("spans.jsonl", "tasks.jsonl"):
            (attempt.path / records).touch()
        attempt.publish(FACTS)
        attempt.make_current()
        run.rank_log(0, 0).parent.mkdir()
        run.rank_log(0, 0).write_text("hello\n")
        return run

    return run


def test_keys_that_a_later_version_adds_change_nothing(make: Callable[..., RunDir], inside: Command) -> None:
    run = make(schema=2, tomorrow={"a": 1})
    end = run.path / "attempts" / "0" / "end.json"
    end.write_text(json.dumps(json.loads(end.read_text()) | {"tomorrow": 1}))
    assert [row["state"] for row in json.loads(inside("ps", "--all", "--json").stdout)] == ["COMPLETED"]
    assert inside("report", "other").returncode == 0
    assert inside("logs", "other").stdout == "rank 0: hello\n"


RECORDS: dict[str, dict[str, Any]] = {
    "a later value": {"cluster": "kubernetes"},
    "a key of another type": {"pid": "abc"},
    "a time that no clock shows": {"created": 1e300},
    "a time before 1970": {"created": -1e18},
    "an earlier one without a key": {"world_size": None},
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_of_another_version_is_told(name: str, make: Callable[..., RunDir], inside: Command) -> None:
    run = make(**RECORDS[name])
    make("sound")
    for command in ("report", "logs", "resume", "stop", "cancel", "url"):
        done = inside(command, "other")
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith(f"{run.record}: not a record that this version can read: ")
        assert done.stderr.endswith(f"{SAID}\n")
    listed = inside("ps", "--all")
    assert (listed.returncode, SAID in listed.stderr) == (0, True)
    rows = {row["id"]: row["state"] for row in json.loads(inside("ps", "--all", "--json").stdout)}
    assert rows == {"sound": "COMPLETED", "other": "UNKNOWN"}


FILES: dict[str, tuple[str, str]] = {
    "attempts/0/end.json": ('{"reason": "moved", "message": "", "time": 1.0}', "report"),
    "attempts/0/start.json": ('{"when": 1.0}', "report"),
    "attempts/0/facts.json": ('{"policy": "p"}', "report"),
    "attempts/0/tasks.jsonl": ('{"kind": "dreaming", "id": "a"}\n', "report"),
    "attempts/0/spans.jsonl": ("[0, 0, 1.0, 2.0]\n", "report"),
    "recipe.yaml": ("tomorrow: {a: 1}\n", "resume"),
}


@pytest.mark.parametrize("name", FILES)
def test_other_files_of_another_version_are_told(name: str, make: Callable[..., RunDir], inside: Command) -> None:
    content, command = FILES[name]
    run = make()
    (run.path / name).write_text(content)
    done = inside(command, "other")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"{run.path / name}" in done.stderr and SAID in done.stderr
    assert inside("ps", "--all").returncode == 0
    assert inside("logs", "other").returncode == 0


@pytest.mark.parametrize("content", ['{"policy": "p"}', '{"policy": 1, "nodes": [], "stages": null}', "[1]"])
def test_a_report_of_another_version_is_told(content: str, make: Callable[..., RunDir], inside: Command) -> None:
    run = make()
    (run.path / "attempts" / "0" / "end.json").write_text(json.dumps(FINISHED))
    run.report.write_text(content)
    done = inside("report", "other")
    assert done.returncode == 2
    assert done.stderr.startswith(f"{run.report}: not a report that ")
    assert SAID in done.stderr and done.stderr.endswith("remove it, and one is made again\n")
    if content.startswith("{"):
        assert json.loads(inside("report", "other", "--json").stdout) == json.loads(content)
    run.report.unlink()
    again = inside("report", "other")
    assert (again.returncode, again.stderr) == (0, ""), "one is made again"


def test_a_profile_of_another_version_is_told(make: Callable[..., RunDir], inside: Command) -> None:
    run = make()
    run.profile_order.write_text("{}")
    run.report.write_text("{}")
    done = inside("report", "other")
    assert (done.returncode, "KeyError: 'coefficients'" in done.stderr, SAID in done.stderr) == (2, True, True)


def test_a_picture_that_cannot_be_read_leaves_a_run_incomplete(make: Callable[..., RunDir], inside: Command) -> None:
    run = make()
    (run.path / "attempts" / "0" / "end.json").unlink()
    (run.path / "attempts" / "0" / "progress.json").write_text('{"state": "dreaming"}')
    done = inside("report", "other")
    assert (done.returncode, "not complete" in done.stderr) == (0, True)


def test_a_submission_that_was_cut_off_names_no_job(make: Callable[..., RunDir], inside: Command) -> None:
    run = make(cluster="slurm", job=None)
    shutil.rmtree(run.path / "attempts")
    for command in ("stop", "cancel"):
        done = inside(command, "other")
        assert (done.returncode, done.stderr.split(";")[0]) == (2, f"{run.record}: names no job")
