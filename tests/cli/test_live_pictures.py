"""Pictures of a run whose jobs and attempts follow each other."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from lemix_hpc.cli.live import picture
from lemix_hpc.cli.live.picture import pictures
from lemix_hpc.launch.job_queue import JobInQueue
from lemix_hpc.launch.rundir import RunDir, RunRecord
from lemix_hpc.launch.start import StartedRun
from lemix_hpc.records.attempts import AttemptEnd, AttemptStart, claim
from lemix_hpc.records.schema import Progress

RECORD = RunRecord("renewed", "slurm", 1.0, ["lemix"], "login", "me", "0", 3, job="1", renew=True)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "renewed")
    run.path.mkdir()
    run.write_record(RECORD)
    return run


def test_the_next_job_of_a_run_is_watched_on(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    states = {"1": "RUNNING", "2": "PENDING"}
    queue = {"2": JobInQueue("Dependency", "gpu", 1, 1)}
    monkeypatch.setattr(picture, "run_state", lambda _, record: states[record.job])
    monkeypatch.setattr(picture, "look_up", queue.get)
    for every in ("LOOK_EVERY_S", "ASK_SLURM_EVERY_S", "ASK_SLURM_ENDING_S", "ASK_QUEUE_EVERY_S"):
        monkeypatch.setattr(picture, every, 0.0)
    looks = pictures(StartedRun(run, RECORD))
    assert (next(looks).state, next(looks).job) == ("RUNNING", None)
    run.successor.write_text("2")
    assert next(looks).job == queue["2"]
    run.write_record(msgspec.structs.replace(RECORD, job="2"))
    states |= {"1": "TIMEOUT", "2": "RUNNING"}
    assert next(looks).state == "RUNNING", "the first job has ended, and the second one has just taken over"
    shown = next(looks)
    assert (shown.state, shown.job_id) == ("RUNNING", "2")
    states["2"] = "COMPLETED"
    assert [each.state for each in looks] == ["COMPLETED"]


def test_figures_belong_to_the_attempt_that_wrote_them(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "run_state", lambda *_: "RUNNING")
    monkeypatch.setattr(picture, "look_up", lambda _: None)
    monkeypatch.setattr(picture, "LOOK_EVERY_S", 0.0)
    looks = pictures(StartedRun(run, RECORD))
    assert (next(looks).progress, next(looks).ends) == (None, ())
    first = claim(run.path)
    first.start(AttemptStart(time=2.0, host="node7"))
    (first.path / "progress.json").write_bytes(msgspec.json.encode(Progress("running", served=3)))
    first.publish("progress.json")
    first.make_current()
    shown = next(looks)
    assert (shown.earlier, shown.ends, shown.host) == (False, (None,), "node7")
    end = AttemptEnd("killed", "a rank", 3.0)
    first.end(end)
    second = claim(run.path)
    shown = next(looks)
    assert (shown.earlier, shown.ends) == (True, (end, None))
    assert shown.progress is not None and shown.progress.served == 3
    second.make_current()
    assert not next(looks).earlier
