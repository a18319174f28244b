"""A batch file that needs several attempts, with real vLLM: each line is answered once, or told that it never will be."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lemix_hpc.launch.local import environment
from lemix_hpc.launch.punish import ranks
from lemix_hpc.launch.rundir import RunDir
from tests.runtime.conftest import A100, SUMS, tiny_llama

pytest.importorskip("vllm")
pytestmark = [pytest.mark.mpi, pytest.mark.slow]

LEMIX = str(Path(sys.executable).with_name("lemix"))
LINES = 300
PATIENCE_S = 300


def recipe(directory: Path) -> Path:
    """One node that answers a batch and trains; a rank that dies is followed by another attempt."""
    batch = directory / "batch.jsonl"
    body = {"prompt": "1+1=", "max_tokens": 60, "ignore_eos": True}
    line = {"method": "POST", "url": "/v1/completions", "body": body}
    batch.write_text("\n".join(json.dumps({"custom_id": f"line{n}"} | line) for n in range(LINES)) + "\n")
    content = {
        "name": "batch",
        "nodes": {"count": 1, "stages": 1},
        "model": {"config": tiny_llama(2, hidden_size=128, intermediate_size=224, vocab_size=300)},
        "engine": {"kind": "vllm", "coefficients": str(A100), "max_batch_requests": 2},
        "serving": {"source": {"kind": "openai-batch", "path": str(batch)}},
        "training": {"sequence_length": 64, "data": {"path": str(SUMS)}, "checkpoint": {"every_s": 2}},
    }
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def until(what: str, found: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not found():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def results(run: RunDir) -> list[dict[str, Any]]:
    content = run.results.read_bytes() if run.results.exists() else b""
    return [json.loads(line) for line in content.splitlines(keepends=True) if line.endswith(b"\n")]


def test_each_line_has_one_answer_after_a_kill_and_a_stop(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    own = environment() | {"XDG_STATE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def lemix(*arguments: object) -> str:
        command = [LEMIX, *map(str, arguments)]
        done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def answered() -> int:
        return sum(result["response"] is not None for result in results(run))

    lemix("submit", recipe(tmp_path), "--cluster", "local", "--out", run.path)
    until("first answers", lambda: answered() >= 5)
    os.kill(ranks(run)[-1], signal.SIGKILL)
    until("another attempt", lambda: len(list(run.path.glob("attempts/[0-9]*"))) == 2)
    before = answered()
    until("answers of the other attempt", lambda: answered() > before + 3)
    lemix("stop", run.path)
    lemix("logs", run.path, "--follow")
    until("expired lines", lambda: len(results(run)) == LINES)
    kept = {result["custom_id"]: result for result in results(run) if result["response"] is not None}
    assert 8 < len(kept) < LINES
    errors = {result["error"]["code"] for result in results(run) if result["error"] is not None}
    assert errors == {"batch_expired"}

    lemix("resume", run.path)
    until("all answers", lambda: answered() == LINES)
    lemix("logs", run.path, "--follow")
    last = results(run)
    assert Counter(result["custom_id"] for result in last) == Counter(f"line{n}" for n in range(LINES))
    assert all(result["response"]["status_code"] == 200 for result in last)
    assert [r for r in last if r["custom_id"] in kept] == list(kept.values()), "what was answered is not asked again"
    report = json.loads(lemix("report", run.path, "--json"))
    assert report["complete"] and report["serving"]["finished"] == LINES
    assert [attempt["reason"] for attempt in report["attempts"]][:2] == ["killed", "drained"]
