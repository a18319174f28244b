"""A real run whose journal goes through several parts, and which is killed on the way."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from lemix_hpc.launch.rundir import RunDir
from lemix_hpc.records.attempts import Attempt
from lemix_hpc.records.journal import journal_parts
from lemix_hpc.records.journal_writer import PART
from lemix_hpc.records.schema import ServedTask
from tests.conftest import REPOSITORY
from tests.records.attempt_files import outcomes
from tests.runtime.test_damage import PATIENCE_S, kill, lemix

pytestmark = pytest.mark.mpi
COEFFICIENTS = REPOSITORY / "profiling" / "nvidia-a100-80gb" / "llama-2-7b-float16.yaml"
NAME = 40_000
"""Characters of a request's name, which is in the journal when it comes and when it ends: a part is full after a hundred."""
REQUESTS, MICRO_BATCHES = 6 * PART // (2 * NAME), 40


def wait_for_part(attempt: Attempt, number: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while not attempt.path.exists() or number not in journal_parts(attempt.path):
        assert time.monotonic() < end and attempt.ended is None, attempt.path
        time.sleep(0.02)


def test_a_run_of_many_parts_that_is_killed_serves_and_trains_all_of_it_once(tmp_path: Path) -> None:
    names = [f"{number}-".ljust(NAME, "x") for number in range(REQUESTS)]
    lines = ({"custom_id": name, "timestamp": n / 80, "body": {"prompt": "x"}} for n, name in enumerate(names))
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe: dict[str, Any] = {
        "nodes": {"count": 1, "stages": 1},
        "engine": {"kind": "emulated", "coefficients": str(COEFFICIENTS)},
        "serving": {"source": {"kind": "openai-batch", "path": "lines.jsonl"}, "max_new_tokens": 1, "mode": "score"},
        "training": {"micro_batches": MICRO_BATCHES, "sequence_length": 32, "micro_batch_size": 1},
        "report": {"spans": "off"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    lemix(tmp_path, "submit", "recipe.yaml", "--cluster", "local", "--out", "run")
    run = RunDir(tmp_path / "run")
    first, second = (Attempt(run.path / "attempts" / str(number)) for number in range(2))
    wait_for_part(first, 3)
    kill(run)
    lemix(tmp_path, "resume", "run")
    wait_for_part(second, 3)
    lemix(tmp_path, "logs", "run", "--follow")

    for attempt in (first, second):
        parts = journal_parts(attempt.path)
        assert len(parts) == 2 and parts[0] > 1, "only the last two are there"
    report = json.loads(lemix(tmp_path, "report", "run", "--json"))
    assert report["complete"] and len(report["attempts"]) == 2
    assert report["serving"]["finished"] == REQUESTS and report["training"]["finished"] == MICRO_BATCHES
    tasks = outcomes(run.path)
    assert Counter(task.id for task in tasks if isinstance(task, ServedTask)) == Counter(names), "nothing lost or twice"
    assert len({task.id for task in tasks}) == len(tasks) == REQUESTS + MICRO_BATCHES
    numbers = [task.number for task in tasks if isinstance(task, ServedTask)]
    assert len(set(numbers)) == REQUESTS, "each under a number of its own"
