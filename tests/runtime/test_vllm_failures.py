"""What becomes of a run when a part of vLLM dies or hangs: it ends, with the reason, and leaves no process behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.records.attempt_files import outcomes
from tests.runtime.conftest import tiny_llama

pytestmark = pytest.mark.mpi

DEADLINE_S = 240
TIMEOUT_S = 30
"""The first batch may compile kernels, which takes seconds on a machine that has none yet."""


@contextmanager
def serving_run(
    directory: Path, restarts: int = 0, timeout_s: float = TIMEOUT_S, requests: int = 100 * DEADLINE_S
) -> Iterator[subprocess.Popen[str]]:
    """A run that serves request after request, by default for longer than the test lasts. INT stops it."""
    model = tiny_llama(2, hidden_size=128, intermediate_size=224)
    source = {"kind": "constant", "rate": 10, "requests": requests, "lengths": "lmsys-chat"}
    recipe: dict[str, Any] = {
        "nodes": {"stages": 2},
        "model": {"config": model},
        "cluster": {"restarts": restarts},
        "engine": {"kind": "vllm", "timeout_s": timeout_s},
        "serving": {"source": source, "mode": "generate", "max_prompt_tokens": 32, "max_new_tokens": 8},
    }
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    lemix = str(Path(sys.executable).with_name("lemix"))
    environment = os.environ | {"XDG_STATE_HOME": str(directory / "state"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [lemix, "run", str(directory / "recipe.yaml"), "--cluster", "local", "--out", str(directory / "run")],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(60)


def until(found: Callable[[], Any]) -> Any:
    end = time.monotonic() + DEADLINE_S
    while not (value := found()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)
    return value


def named(process: subprocess.Popen[str], words: str) -> list[psutil.Process]:
    """Descendants of the run whose command line has these words."""
    return [child for child in psutil.Process(process.pid).children(recursive=True) if words in command_of(child)]


def command_of(process: psutil.Process) -> str:
    """Nothing of one that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def served(directory: Path) -> bool:
    tasks = directory / "run" / "tasks.jsonl"
    return tasks.exists() and '"finished"' in tasks.read_text()


def ended(process: subprocess.Popen[str], directory: Path, left: list[psutil.Process]) -> str:
    """The reason that the run gives, once it and all its processes have ended."""
    _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1, stderr
    until(lambda: gone(left))
    return stderr + (directory / "run" / "failure.txt").read_text()


@pytest.mark.slow
def test_a_stage_that_hangs_ends_the_run_within_its_time(tmp_path: Path) -> None:
    with serving_run(tmp_path) as process:
        until(lambda: served(tmp_path))
        left = psutil.Process(process.pid).children(recursive=True)
        (log,) = (tmp_path / "run").glob("logs/*/rank-2.log")
        rank_of(left, log).suspend()
        said = ended(process, tmp_path, left) + log.with_name("rank-0.log").read_text()
        # Whoever notices first: vLLM's engine, which waits for a batch, or the scheduler, which hears nothing of the rank.
        assert f"no stage answered within {TIMEOUT_S} s" in said or (
            f"rank 2 (node 0, stage 1) has not been heard of for {TIMEOUT_S} s (engine.timeout_s)" in said
        )


def rank_of(processes: list[psutil.Process], log: Path) -> psutil.Process:
    ranks = [child for child in processes if "lemix_hpc.launch.rank" in command_of(child)]
    (rank,) = [child for child in ranks if any(file.path == str(log) for file in child.open_files())]
    return rank


def answers(directory: Path) -> int:
    return sum(task.outcome == "finished" for task in outcomes(directory / "run"))


def gone(processes: list[psutil.Process]) -> bool:
    return not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in processes)


def test_an_engine_process_takes_no_signal_of_the_run_and_neither_its_death_nor_its_leaders_costs_a_request(
    tmp_path: Path,
) -> None:
    with serving_run(tmp_path, restarts=3, timeout_s=60, requests=150) as process:
        until(lambda: served(tmp_path))
        (engine,) = named(process, "EngineCore")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            engine.send_signal(number)
        before = answers(tmp_path)
        until(lambda: answers(tmp_path) > before + 20)

        left = psutil.Process(process.pid).children(recursive=True)
        rank_of(left, tmp_path / "run/logs/attempt-0/rank-0.log").kill()
        until(lambda: gone([child for child in left if "supervisor" not in command_of(child)]))
        until(lambda: (tmp_path / "run/attempts/1/spans.jsonl").exists() and answers(tmp_path) > before + 40)
        (engine,) = named(process, "EngineCore")
        engine.kill()
        _, stderr = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, stderr
    ends = [json.loads((tmp_path / f"run/attempts/{number}/end.json").read_text()) for number in (0, 1, 2)]
    # A stage may notice the end of its engine before mpiexec that of the leader.
    assert [end["reason"] for end in ends] in (["killed", "error", "finished"], ["error", "error", "finished"])
    assert "engine" in ends[1]["message"]
    tasks = outcomes(tmp_path / "run")
    assert [task.outcome for task in tasks] == ["finished"] * 150
    assert len({task.id for task in tasks}) == 150
