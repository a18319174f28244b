"""Real runs whose directory is on a real file system that fills up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lemix_hpc.checkpoints.store import complete_paths
from lemix_hpc.launch.rundir import RunDir
from lemix_hpc.launch.states import read_progress
from lemix_hpc.records.attempts import Attempt, attempts
from lemix_hpc.records.journal import Ended
from lemix_hpc.records.schema import Progress
from tests.records.attempt_files import records_of
from tests.runtime.conftest import A100, sums_training, tiny_llama
from tests.small_disk import SmallDisk, small_disk

pytestmark = pytest.mark.mpi
LEMIX = str(Path(sys.executable).with_name("lemix"))
PATIENCE_S = 240


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", 40) as disk:
        yield disk


class Running:
    """`lemix run`, its run on the small disk and everything else elsewhere."""

    def __init__(self, disk: SmallDisk, elsewhere: Path, recipe: dict[str, Any]) -> None:
        self._disk = disk
        self._elsewhere = elsewhere
        (elsewhere / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        self.run = RunDir(disk.view / "run")
        self.process = self._start("run", elsewhere / "recipe.yaml", "--cluster", "local", "--out", disk.path / "run")

    def _start(self, *arguments: object) -> subprocess.Popen[str]:
        environment = os.environ | {"XDG_STATE_HOME": str(self._elsewhere / "state"), "OMP_NUM_THREADS": "1"}
        command = [*self._disk.prefix, LEMIX, *map(str, arguments)]
        with (self._elsewhere / "said").open("ab") as said:
            return subprocess.Popen(command, stdout=said, stderr=said, text=True, env=environment)

    @property
    def said(self) -> str:
        """All that was printed; lines may be broken anywhere."""
        return " ".join((self._elsewhere / "said").read_text().split())

    def until(self, found: Callable[[Progress], Any]) -> Any:
        """What is found in the live figures, as soon as it is."""
        end = time.monotonic() + PATIENCE_S
        while True:
            progress = read_progress(self.run)
            if progress is not None and (value := found(progress)):
                return value
            assert time.monotonic() < end and self.process.poll() is None, (progress, self.said)
            time.sleep(0.05)

    def end(self) -> tuple[int, dict[str, Any]]:
        """Exit code and report."""
        code = self.process.wait(PATIENCE_S)
        report: dict[str, Any] = json.loads(self.run.report.read_text())
        return code, report

    def resume(self) -> None:
        """Go on, and wait for the end."""
        for command in (("resume",), ("logs", "--follow")):
            assert self._start(*command, self._disk.path / "run").wait(PATIENCE_S) == 0, self.said

    def log(self, attempt: int = 0) -> str:
        return self.run.rank_log(attempt, 0).read_text()


def outcomes(run: RunDir) -> int:
    """How many requests have an outcome that is safe on the disk."""
    return sum(isinstance(record, Ended) for record in records_of(Attempt(run.path / "attempts" / "0")))


@pytest.mark.slow
def test_emulated_stages_serve_on_from_reserved_space_until_there_is_room(disk: SmallDisk, tmp_path: Path) -> None:
    running = Running(
        disk,
        tmp_path,
        {
            "name": "full",
            "nodes": {"stages": 2},
            "engine": {"kind": "emulated", "coefficients": str(A100)},
            "serving": {"source": {"kind": "poisson", "rate": 40, "requests": 320}},
            "training": {"share": 0.2},
            "report": {"live_interval_s": 0.1},
        },
    )
    running.until(lambda progress: progress.served >= 10)
    disk.fill()
    assert "No space left on device" in running.until(lambda progress: progress.disk)
    before = outcomes(running.run)
    served = running.until(lambda progress: progress.disk and progress.served)
    running.until(lambda progress: progress.disk and progress.served >= served + 40)
    assert outcomes(running.run) >= before + 20, "what was promised went into reserved space"
    disk.free()
    running.until(lambda progress: progress.disk is None)
    code, report = running.end()
    assert code == 0, running.said
    assert report["serving"]["finished"] == report["serving"]["received"] == 320
    assert report["training"]["finished"] == report["training"]["released"] > 0
    assert report["disk"]["seconds"] > 0 and report["disk"]["left_out"] == 0
    assert len((running.run.path / "tasks.jsonl").read_text().splitlines()) == 320 + report["training"]["finished"]
    assert "the disk did not take everything for" in running.said
    log = running.log()
    assert log.index("the disk does not take everything: No space left") < log.index("takes everything again")


def training(**checkpoint: Any) -> dict[str, Any]:
    """Trains as long as it serves."""
    return {
        "name": "saves",
        "nodes": {"stages": 1},
        "model": {"config": tiny_llama(2)},
        "serving": {"source": {"kind": "constant", "rate": 8, "requests": 200}, "max_new_tokens": 2},
        "training": sums_training(checkpoint=checkpoint),
        "report": {"live_interval_s": 0.1},
    }


def test_a_run_serves_and_trains_on_from_its_reserved_space_and_saves_when_there_is_room(
    disk: SmallDisk, tmp_path: Path
) -> None:
    running = Running(disk, tmp_path, training(every_s=2.0))
    running.until(lambda progress: progress.checkpoint_step)
    disk.fill()
    failure = running.until(lambda progress: progress.checkpoint_failure)
    assert "No space left on device" in failure
    assert "No space left on device" in running.until(lambda progress: progress.disk)
    (kept, *_) = complete_paths(running.run.path / "checkpoints")
    before, served = outcomes(running.run), running.until(lambda progress: progress.served)
    running.until(lambda progress: progress.checkpoint_failure and progress.served >= served + 8)
    assert outcomes(running.run) >= before + 4, "what was promised went into reserved space"
    assert kept in complete_paths(running.run.path / "checkpoints"), "the older one stays"
    step = running.until(lambda progress: progress.checkpoint_step)
    disk.free()
    running.until(lambda progress: progress.checkpoint_failure is None and progress.checkpoint_step > step)
    code, report = running.end()
    assert code == 0, running.said
    saved = report["checkpoints"]
    assert saved["failed"] >= 1 and saved["unsaved_steps"] == 0
    assert report["serving"]["finished"] == 200
    assert report["disk"]["seconds"] > 0 and report["disk"]["left_out"] == 0
    assert len((running.run.path / "tasks.jsonl").read_text().splitlines()) == 200 + report["training"]["finished"]
    assert "the disk did not take everything for" in running.said
    log = running.log()
    assert log.index("the disk does not take everything: No space left") < log.index("takes everything again")
    assert "could not be saved" in running.log() and "it is tried again in 5 s" in running.log()


@pytest.mark.slow
def test_a_last_save_that_never_works_is_a_failure_and_can_be_made_up_for(disk: SmallDisk, tmp_path: Path) -> None:
    recipe = training(every_s=2.0)
    recipe["serving"]["source"]["requests"] = 80
    running = Running(disk, tmp_path, recipe)
    running.until(lambda progress: progress.checkpoint_step)
    disk.fill()
    running.until(lambda progress: progress.state == "finished")
    disk.free()
    code, report = running.end()
    assert code == 1, running.said
    assert report["serving"]["finished"] == 80
    assert report["checkpoints"]["unsaved_steps"] > 0
    assert "in no checkpoint" in running.said
    assert "unsaved: all work is done, but the training state could not be saved: " in running.said
    running.resume()
    ends = [attempt.ended for attempt in attempts(running.run.path)]
    assert [end.reason for end in ends if end is not None] == ["unsaved", "finished"]
    report = json.loads(running.run.report.read_text())
    assert report["checkpoints"]["unsaved_steps"] == 0 and report["serving"]["finished"] == 80
