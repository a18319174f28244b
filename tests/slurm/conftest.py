"""A user of the one-machine cluster."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, SlurmCluster

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


def sacct_state(cluster: SlurmCluster, job: str, patience_s: float = PATIENCE_S) -> str:
    """The job's state in the accounting, once it is final there."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        state = cluster.run("sacct", "-j", job, "-X", "-n", "-P", "-o", "State")
        if state not in ("", "RUNNING", "PENDING", "COMPLETING"):
            return state
        time.sleep(0.2)
    raise AssertionError(f"job {job} is still {state} in the accounting")


def until(what: str, found: Callable[[], Any], timeout_s: float = PATIENCE_S, seen: Callable[[], str] = str) -> Any:
    """What is found, as soon as it is. `seen` tells what there is instead, should it not be found."""
    end = time.monotonic() + timeout_s
    while not (value := found()):
        assert time.monotonic() < end, f"{what}: not after {timeout_s} s\n{seen()}"
        time.sleep(0.2)
    return value


RECIPE = f"""\
name: survivor
nodes: {{count: 2, stages: 1}}
engine: {{kind: emulated, coefficients: {REPOSITORY}/profiling/nvidia-a100-80gb/llama-2-7b-float16.yaml}}
serving: {{source: {{kind: constant, rate: 10, requests: 5000, lengths: lmsys-chat}}}}
training: {{}}
report: {{live_interval_s: 0.1}}
"""


@dataclass(frozen=True)
class Submitted:
    """A run on the cluster."""

    cluster: SlurmCluster
    client: Client
    path: Path
    job: str

    @property
    def record(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.path / "run.json").read_text())
        return content

    @property
    def state(self) -> str:
        """As `lemix ps` tells it."""
        state: str = self.client.state(self.path.name)["state"]
        return state

    @property
    def report(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.path / "report.json").read_text())
        return content

    def serving(self, first: int = 0) -> int:
        """Until an attempt, this one or a later, has answered a request of its own. Which one that is."""

        def found() -> list[int]:
            served = [path for path in self.path.glob("attempts/[0-9]*/spans.jsonl") if b'"serve"' in path.read_bytes()]
            return [number for path in served if (number := int(path.parent.name)) >= first]

        answering: list[int] = until(f"an answer of attempt {first}", found, seen=self.seen)
        return max(answering)

    def end(self, attempt: int = 0) -> dict[str, Any]:
        """Why an attempt ended, once it has."""
        file = self.path / "attempts" / str(attempt) / "end.json"
        content: dict[str, Any] = json.loads(
            until(f"end of attempt {attempt}", lambda: file.exists() and file.read_text(), seen=self.seen)
        )
        return content

    def ended(self, reason: str) -> dict[str, Any]:
        """The end of the first attempt that ended for this reason. MPI may have failed to start in those before it."""

        def ends() -> list[dict[str, Any]]:
            files = sorted(self.path.glob("attempts/[0-9]*/end.json"), key=lambda path: int(path.parent.name))
            return [end for path in files if (end := json.loads(path.read_text()))["reason"] == reason]

        found: dict[str, Any] = until(f"an attempt that is {reason}", ends, seen=self.seen)[0]
        return found

    def seen(self) -> str:
        """What the cluster and the run's own logs say now."""
        logs = [*sorted(self.path.glob("submitit/*_log.*")), *sorted(self.path.glob("logs/*/launcher.log"))]
        queue = self.cluster.run("squeue", "-o", "%i %T %r %M %N")
        return "\n".join([queue, *(f"{log.relative_to(self.path)}:\n{log.read_text()[-2000:]}" for log in logs)])

    def gone(self) -> None:
        """Until Slurm has nothing of the job left, and nothing of the run's processes is."""
        until("end of the job", lambda: self.job not in self.cluster.run("squeue", "-h", "-o", "%i").split())
        assert self.processes() == {}

    def nothing_shared(self) -> None:
        """The hosts have no shared memory left of ranks, however those ended."""
        for node in ("n1", "n2", "n3"):
            assert self.cluster.run("srun", "-w", node, "ls", "/dev/shm") == ""

    def processes(self) -> dict[int, str]:
        """Command lines of the run's ranks and supervisors, by pid; those in virtual nodes are seen from this machine."""
        listed = subprocess.run(["ps", "-eww", "-o", "pid,args"], capture_output=True, text=True, check=True).stdout
        lines = [line.split(maxsplit=1) for line in listed.splitlines() if str(self.path) in line]
        return {int(pid): command for pid, command in lines if "-m lemix_hpc" in command or "submitit" in command}

    @property
    def host(self) -> str:
        """The first host of its job."""
        return self.cluster.run("squeue", "-h", "-j", self.job, "-o", "%B")

    def pid_of_rank(self, rank: int) -> int:
        for pid, command in self.processes().items():
            if "lemix_hpc.launch.rank" in command and "srun" not in command:
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if f"SLURM_PROCID={rank}".encode() in environment:
                    return pid
        raise AssertionError(f"no rank {rank}")


Submit = Callable[..., Submitted]


@pytest.fixture
def submit(slurm_cluster: SlurmCluster, client: Client, slurm_tmp_path: Path) -> Submit:
    """Submit the recipe with changes, each KEY=VALUE, and options."""

    def call(*changes: str, options: tuple[str, ...] = (), where: str = "slurm") -> Submitted:
        recipe, out = slurm_tmp_path / "recipe.yaml", slurm_tmp_path / "survivor"
        recipe.write_text(RECIPE)
        sets = [part for change in changes for part in ("--set", change)]
        command = ["submit", str(recipe), "--cluster", where, *options, *sets, "--out", str(out), "--json"]
        return Submitted(slurm_cluster, client, out, json.loads(client.run(*command))["job"])

    return call
