"""A user of the one-machine cluster."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SlurmCluster

LEMIX = str(Path(sys.executable).with_name("lemix"))
PATIENCE_S = 240


class Client:
    """A user's shell on the cluster."""

    def __init__(self, cluster: SlurmCluster, home: Path) -> None:
        self.environment = {**os.environ, **cluster.env, "XDG_STATE_HOME": str(home), "OMP_NUM_THREADS": "1"}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [LEMIX, *arguments], env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def run(self, *arguments: str) -> str:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, out + err
        return out

    def state(self, run: str) -> dict[str, Any]:
        """The run's line of `lemix ps`."""
        rows: list[dict[str, Any]] = json.loads(self.run("ps", "--json"))
        return next(row for row in rows if row["id"] == run)


@pytest.fixture
def client(slurm_cluster: SlurmCluster, slurm_tmp_path: Path) -> Client:
    return Client(slurm_cluster, slurm_tmp_path / "home")


def sacct_state(cluster: SlurmCluster, job: str, patience_s: float = 30) -> str:
    """The job's state in the accounting, once it is final there."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        state = cluster.run("sacct", "-j", job, "-X", "-n", "-P", "-o", "State")
        if state not in ("", "RUNNING", "PENDING", "COMPLETING"):
            return state
        time.sleep(0.2)
    raise AssertionError(f"job {job} is still {state} in the accounting")


def until(what: str, found: Callable[[], Any], timeout_s: float = PATIENCE_S) -> Any:
    """What is found, as soon as it is."""
    end = time.monotonic() + timeout_s
    while not (value := found()):
        assert time.monotonic() < end, f"{what}: not after {timeout_s} s"
        time.sleep(0.2)
    return value
