"""What ends an attempt on the real cluster, and what follows: drains, requeues, restarts and renewal."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, SlurmCluster
from tests.slurm.conftest import Client, sacct_state, until

pytestmark = pytest.mark.slurm

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

        answering: list[int] = until(f"an answer of attempt {first}", found)
        return max(answering)

    def end(self, attempt: int = 0) -> dict[str, Any]:
        """Why an attempt ended, once it has."""
        file = self.path / "attempts" / str(attempt) / "end.json"
        content: dict[str, Any] = json.loads(
            until(f"end of attempt {attempt}", lambda: file.exists() and file.read_text())
        )
        return content

    def ended(self, reason: str) -> dict[str, Any]:
        """The end of the first attempt that ended for this reason. MPI may have failed to start in those before it."""

        def ends() -> list[dict[str, Any]]:
            files = sorted(self.path.glob("attempts/[0-9]*/end.json"), key=lambda path: int(path.parent.name))
            return [end for path in files if (end := json.loads(path.read_text()))["reason"] == reason]

        found: dict[str, Any] = until(f"an attempt that is {reason}", ends)[0]
        return found

    def gone(self) -> None:
        """Until Slurm has nothing of the job left, and nothing of the run's processes is."""
        until("end of the job", lambda: self.job not in self.cluster.run("squeue", "-h", "-o", "%i").split())
        assert self.processes() == {}

    def processes(self) -> dict[int, str]:
        """Command lines of the run's ranks and supervisors, by pid; those in virtual nodes are seen from this machine."""
        listed = subprocess.run(["ps", "-eww", "-o", "pid,args"], capture_output=True, text=True, check=True).stdout
        lines = [line.split(maxsplit=1) for line in listed.splitlines() if str(self.path) in line]
        return {int(pid): command for pid, command in lines if "-m lemix_hpc" in command or "submitit" in command}

    def pid_of_rank(self, rank: int) -> int:
        for pid, command in self.processes().items():
            if "lemix_hpc.launch.rank" in command and "srun" not in command:
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if f"SLURM_PROCID={rank}".encode() in environment:
                    return pid
        raise AssertionError(f"no rank {rank}")


Submit = Callable[..., Submitted]


@pytest.fixture
def submit(slurm_cluster: SlurmCluster, client: Client, slurm_tmp_path: Path) -> Iterator[Submit]:
    """Submit the recipe with changes, each KEY=VALUE, and options. Nothing of it is left to the next test."""

    def call(*changes: str, options: tuple[str, ...] = ()) -> Submitted:
        recipe, out = slurm_tmp_path / "recipe.yaml", slurm_tmp_path / "survivor"
        recipe.write_text(RECIPE)
        sets = [part for change in changes for part in ("--set", change)]
        command = ["submit", str(recipe), "--cluster", "slurm", *options, *sets, "--out", str(out), "--json"]
        return Submitted(slurm_cluster, client, out, json.loads(client.run(*command))["job"])

    yield call
    slurm_cluster.run("scancel", "--name=lemix-survivor")
    until("end of all jobs", lambda: slurm_cluster.run("squeue", "-h", "-n", "lemix-survivor", "-o", "%i") == "")


def test_a_run_that_outlives_its_time_limit_is_drained_and_goes_on_by_itself(submit: Submit) -> None:
    run = submit("cluster.time='2'", "policy.drain_reserve_s=80", "serving.source.requests=400")
    assert re.fullmatch(r"\d+ s before the time limit", run.ended("time-limit")["message"])
    run.ended("finished")
    run.gone()
    assert sacct_state(run.cluster, run.job) == run.state == "COMPLETED"
    serving = run.report["serving"]
    assert (serving["finished"], serving["rejected"], serving["lost"]) == (400, 0, 0)


def test_without_requeue_a_time_limit_leaves_a_report_and_says_how_to_go_on(submit: Submit) -> None:
    run = submit("cluster.time='2'", "policy.drain_reserve_s=90", "cluster.requeue=false")
    run.ended("time-limit")
    run.gone()
    assert run.state == "TIMEOUT"
    said = next((run.path / "submitit").glob("*_0_log.out")).read_text()
    assert "done: `lemix resume` goes on with the run" in said
    serving = run.report["serving"]
    assert serving["finished"] > 0 and serving["rejected"] == 0
    again = json.loads(run.client.run("resume", "survivor", "--json"))
    assert again["job"] != run.job
    run.client.run("cancel", "survivor")


@pytest.mark.parametrize("by", ["lemix stop", "scancel -s TERM"])
def test_a_run_stops_when_it_is_asked_to_and_does_not_come_back(submit: Submit, by: str) -> None:
    run = submit()
    first = run.serving()
    if by == "lemix stop":
        assert "is stopping" in run.client.run("stop", "survivor")
    else:
        run.cluster.run("scancel", "--signal=TERM", run.job)
    end = run.end(first)
    assert end["reason"] == "drained", end
    run.gone()
    assert sacct_state(run.cluster, run.job) == run.state == "COMPLETED"
    assert run.report["serving"]["finished"] > 0
    assert run.report["serving"]["rejected"] == run.report["serving"]["lost"] == 0


def test_a_run_that_is_stopped_needs_no_successor(submit: Submit) -> None:
    run = submit(options=("--renew",))
    first = run.serving()
    waiting = until("a successor", lambda: (run.path / "successor").exists() and (run.path / "successor").read_text())
    assert run.cluster.run("squeue", "-h", "-j", waiting, "-o", "%T %r") == "PENDING Dependency"
    run.client.run("stop", "survivor")
    assert run.end(first)["reason"] == "drained"
    run.gone()
    assert sacct_state(run.cluster, waiting).startswith("CANCELLED")
    assert run.record["job"] == run.job


def test_each_job_is_followed_by_another_until_all_is_done(submit: Submit) -> None:
    reserve = ("cluster.time='2'", "policy.drain_reserve_s=80", "serving.source.requests=400")
    run = submit(*reserve, options=("--renew",))
    run.ended("time-limit")
    run.ended("finished")
    last = run.record["job"]
    assert last != run.job
    assert sacct_state(run.cluster, run.job) == sacct_state(run.cluster, last) == "COMPLETED"
    until("end of all jobs", lambda: run.cluster.run("squeue", "-h", "-n", "lemix-survivor", "-o", "%i") == "")
    assert not (run.path / "successor").exists()
    assert run.state == "COMPLETED"
    assert run.report["serving"]["finished"] == 400


def test_a_run_goes_on_after_scontrol_requeue(submit: Submit) -> None:
    run = submit()
    first = run.serving()
    run.cluster.run("scontrol", "requeue", run.job)
    second = run.serving(first + 1)
    assert run.end(first)["reason"] == "preempted"
    run.client.run("stop", "survivor")
    assert run.end(second)["reason"] == "drained"
    run.gone()


@pytest.mark.parametrize("partition", ["main", "patient"])
def test_a_run_goes_on_after_a_preemption_with_and_without_time_for_a_drain(submit: Submit, partition: str) -> None:
    run = submit(f"cluster.partition={partition}", "nodes.count=3")
    first = run.serving()
    urgent = ("sbatch", "-p", "urgent", "-N3", "--exclusive", "--wait", "--output=/dev/null", "--wrap=true")
    run.cluster.run(*urgent)
    second = run.serving(first + 1)
    end = run.end(first)
    assert end["reason"] == "preempted", end
    if partition == "patient":
        # The warning came first, and there was time to finish what had begun and to report it.
        assert (run.path / f"attempts/{first}/facts.json").exists()
        assert end["message"] == "Slurm's warning came long before the time limit"
    run.client.run("stop", "survivor")
    run.end(second)
    run.gone()


def test_a_killed_rank_is_followed_by_another_attempt_in_the_same_allocation(submit: Submit) -> None:
    run = submit()
    first = run.serving()
    os.kill(run.pid_of_rank(3), signal.SIGKILL)
    end = run.end(first)
    # Another rank may notice, and fail, before srun tells of the one that was killed.
    assert end["reason"] in ("killed", "error")
    if end["reason"] == "killed":
        assert re.fullmatch(r"(rank|one of ranks) \S+ on n\d was killed by signal 9 \(SIGKILL\)", end["message"])
    run.serving(first + 1)
    assert run.cluster.run("squeue", "-h", "-j", run.job, "-o", "%T") == "RUNNING"
    run.client.run("stop", "survivor")
    run.gone()
    row = run.client.state("survivor")
    assert [attempt["ended"]["reason"] for attempt in row["attempts"]][first:] == [end["reason"], "drained"]


def test_a_cancelled_run_stays_cancelled(submit: Submit) -> None:
    run = submit()
    first = run.serving()
    run.cluster.run("scancel", run.job)
    run.gone()
    assert run.end(first)["reason"] == "cancelled"
    assert sacct_state(run.cluster, run.job).startswith("CANCELLED")
    assert run.state == "CANCELLED"
    assert not (run.path / f"attempts/{first + 1}").exists()
