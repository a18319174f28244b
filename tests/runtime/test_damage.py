"""A real run that is killed, and finds its last record torn and its newest checkpoint damaged."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from lemix_hpc.checkpoints.store import complete_paths
from lemix_hpc.launch.punish import ranks
from lemix_hpc.launch.rundir import RunDir
from lemix_hpc.launch.states import read_progress
from lemix_hpc.records.journal import read_journal
from tests.records.attempt_files import newest_part, outcomes
from tests.runtime.conftest import sums_training, tiny_llama

pytestmark = pytest.mark.mpi
PATIENCE_S = 240
REQUESTS, MICRO_BATCHES = 40, 240


def lemix(directory: Path, *arguments: object) -> str:
    environment = os.environ | {"XDG_STATE_HOME": str(directory / "state"), "OMP_NUM_THREADS": "1", "COLUMNS": "1000"}
    command = [str(Path(sys.executable).with_name("lemix")), *map(str, arguments)]
    done = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=PATIENCE_S, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def kill(run: RunDir) -> None:
    """The supervisor first, which would start the ranks again, then all that it has started."""
    pid = run.read_record().pid
    assert pid is not None
    for victim in (pid, *ranks(run)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    end = time.monotonic() + PATIENCE_S
    while list(ranks(run)):
        assert time.monotonic() < end, "ranks that were killed are still there"
        time.sleep(0.05)


def tear_and_flip(run: RunDir) -> tuple[Path, Path, Path]:
    """The journal, whose last record was half written, the newest checkpoint's file, of which a byte is another, and the
    checkpoint before it."""
    attempt = run.last_attempt
    assert attempt is not None
    journal = newest_part(attempt)
    length = read_journal(journal).length
    with journal.open("r+b") as file:
        file.seek(length - 3)
        file.write(bytes(3))
    older, newest = complete_paths(run.path / "checkpoints")[-2:]
    (weights,) = newest.glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    return journal, weights, older


def test_a_run_goes_on_from_what_is_whole_and_says_what_is_not(tmp_path: Path) -> None:
    recipe: dict[str, Any] = {
        "nodes": {"stages": 1},
        "model": {"config": tiny_llama(2)},
        "serving": {"source": {"kind": "constant", "rate": 8, "requests": REQUESTS}, "max_new_tokens": 2},
        "training": sums_training(micro_batches=MICRO_BATCHES, checkpoint={"every_steps": 10, "keep": 9}),
        "report": {"live_interval_s": 0.1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    lemix(tmp_path, "submit", "recipe.yaml", "--cluster", "local", "--out", "run")
    run = RunDir(tmp_path / "run")
    end = time.monotonic() + PATIENCE_S
    while (now := read_progress(run)) is None or now.served < 4 or len(complete_paths(run.path / "checkpoints")) < 3:
        assert time.monotonic() < end, now
        time.sleep(0.05)
    kill(run)
    journal, weights, older = tear_and_flip(run)
    lemix(tmp_path, "resume", "run")
    lemix(tmp_path, "logs", "run", "--follow")

    log = run.rank_log(1, 0).read_text()
    assert f"damaged: {weights}: its checksum is not the one that was written" in log
    assert "an older checkpoint is taken" in log and f"training goes on from {older}\n" in log
    assert f"damaged: {journal}: what follows byte" in log and "is torn" in log
    report = json.loads(lemix(tmp_path, "report", "run", "--json"))
    assert report["complete"] and report["serving"]["finished"] == REQUESTS
    assert report["training"]["finished"] == report["training"]["steps"] == MICRO_BATCHES
    before, after = (attempt["damage"] for attempt in report["attempts"])
    assert before == [] and any(str(weights) in each for each in after) and any(str(journal) in each for each in after)
    assert f"{weights.name}: its checksum is not the one" in lemix(tmp_path, "report", "run").replace("\n", "")
    tasks = [task.id for task in outcomes(run.path)]
    assert len(tasks) == REQUESTS + MICRO_BATCHES and max(Counter(tasks).values()) == 1, "each outcome once"
    assert (run.path / "attempts" / "1" / "recalled.json").exists(), "what the first one had learned goes on"
    assert any(path.name.startswith("damaged-") for path in (run.path / "checkpoints").iterdir())
