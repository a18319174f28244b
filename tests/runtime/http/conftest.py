"""A run with its real endpoint and pretending nodes, as `stand_in.py` makes them."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from lemix_hpc.launch.local import environment, mpiexec_command
from tests.runtime.conftest import A100, SUMS, tiny_llama

STAND_IN = Path(__file__).with_name("stand_in.py")
KEY = "open sesame"
START_S = 240


@dataclass(frozen=True)
class Open:
    """A run whose endpoint answers. `url` without a path; `pid` of the scheduler's rank."""

    path: Path
    url: str
    pid: int
    process: subprocess.Popen[str]
    log_file: Path

    def client(self, key: str | None = KEY) -> httpx.Client:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30)

    def close(self) -> None:
        """End it as its users do; it must end well."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        assert self.process.wait(60) == 0, self.log

    @property
    def log(self) -> str:
        return read(self.log_file)

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / name).read_text().splitlines()]

    def until(self, found: Callable[[], Any]) -> Any:
        """What is found, as soon as it is; the run's files are written a few times a second."""
        end = time.monotonic() + 30
        while not (value := found()):
            assert time.monotonic() < end and self.process.poll() is None, self.log
            time.sleep(0.05)
        return value

    @property
    def progress(self) -> dict[str, Any]:
        """The live figures."""
        found: dict[str, Any] = json.loads((self.path / "progress.json").read_text())
        return found

    def task(self, id: str) -> dict[str, Any]:
        """A task's record, once it is written."""
        found: dict[str, Any] = self.until(
            lambda: next((task for task in self.lines("tasks.jsonl") if task["id"] == id), None)
        )
        return found


def recipe_of(http: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Two nodes that take turns, and training on sums."""
    recipe: dict[str, Any] = {
        "name": "server",
        "nodes": {"count": 2, "stages": 1},
        "model": {"config": tiny_llama(2)},
        "engine": {"kind": "vllm", "coefficients": str(A100), "timeout_s": 3},
        "serving": {"http": {"port": 0, "api_key": KEY, "max_body_mb": 0.1} | (http or {})},
        "training": {"sequence_length": 32, "data": {"path": str(SUMS)}},
        "policy": {"placement": "round-robin"},
        "report": {"live_interval_s": 0.1},
    }
    return recipe | changes


@contextlib.contextmanager
def started(recipe: dict[str, Any], path: Path, files: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """The ranks of a run in a directory; they are killed if they have not ended by themselves. `files`: as `ulimit -n`."""
    path.mkdir(exist_ok=True)
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    ranks = recipe["nodes"]["count"] * (recipe["nodes"]["stages"] + 1)
    command = mpiexec_command(ranks, [sys.executable, "-u", "-m", "mpi4py", str(STAND_IN), str(path)])
    if files is not None:
        command = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *command]
    with (path / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment() | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=subprocess.STDOUT, text=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(30)


def opened_by(process: subprocess.Popen[str], path: Path, log: Path) -> Open:
    """The run in a directory, once its scheduler's rank has said in its log that the endpoint answers."""
    end = time.monotonic() + START_S
    while (found := re.search(r"OpenAI API: (\S+)/v1 .*process (\d+)", read(log))) is None:
        assert time.monotonic() < end and process.poll() is None, read(log)
        time.sleep(0.1)
    return Open(path, found[1], int(found[2]), process, log)


def read(log: Path) -> str:
    return log.read_text() if log.exists() else ""


@contextlib.contextmanager
def opened(recipe: dict[str, Any], path: Path, files: int | None = None) -> Iterator[Open]:
    """A run, from the moment when its endpoint answers."""
    with started(recipe, path, files) as process:
        yield opened_by(process, path, path / "log")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """One run for all tests of a module; it must end well when it is told to."""
    with opened(recipe_of(), tmp_path_factory.mktemp("server")) as endpoint:
        yield endpoint
        endpoint.close()
