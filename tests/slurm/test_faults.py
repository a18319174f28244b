"""Whatever is killed on the real cluster, or cut off: the run goes on, and each request and micro-batch counts once."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lemix_hpc.records.schema import ServedTask, TrainedTask
from tests.conftest import SlurmCluster
from tests.records.attempt_files import outcomes as tasks_of
from tests.slurm.conftest import Submit, Submitted, sacct_state, until

pytestmark = pytest.mark.slurm


@pytest.fixture(autouse=True)
def whole_again(slurm_cluster: SlurmCluster) -> Iterator[None]:
    """The next test finds the cluster as this one has."""
    yield
    if slurm_cluster.devcluster("status").returncode:
        slurm_cluster.restart("slurmctld")
    for node in ("n1", "n2", "n3"):
        slurm_cluster.join(node)


def outcomes(run: Submitted, kind: str) -> list[str]:
    """The ids of its requests (`serving`) or micro-batches (`training`), one for each outcome; all have finished."""
    of_kind = ServedTask if kind == "serving" else TrainedTask
    wanted = [task for task in tasks_of(run.path) if isinstance(task, of_kind)]
    assert {task.outcome for task in wanted} == {"finished"}
    return [task.id for task in wanted]


def finished_each_once(run: Submitted, requests: int) -> None:
    report: dict[str, Any] = run.report
    assert report["complete"]
    for kind, count in (("serving", requests), ("training", report["training"]["finished"])):
        ids = outcomes(run, kind)
        assert len(ids) == len(set(ids)) == report[kind]["finished"] == count > 0


def test_ranks_and_daemons_may_be_killed(submit: Submit) -> None:
    run = submit("serving.source={kind: poisson, rate: 20, requests: 400}", "training.share=0.2")
    attempt = run.serving()
    stage, leader, scheduler = 3, 2, 0
    for rank in (stage, leader, scheduler):
        os.kill(run.pid_of_rank(rank), signal.SIGKILL)
        # Another rank may notice, and fail, before srun tells of the one that was killed.
        assert run.end(attempt)["reason"] in ("killed", "error")
        attempt = run.serving(attempt + 1)
    often = ("--mean-seconds", "0.5", "--pause-seconds", "1", "--count", "2", "--seed", "1")
    blows = run.client.run("punish", "survivor", "--kinds", "slurmd,controller", *often).splitlines()
    assert {blow.split()[1] for blow in blows[:-1]} == {"slurmd:", "controller:"}, blows
    run.ended("finished")
    run.gone()
    run.nothing_shared()
    assert sacct_state(run.cluster, run.job) == run.state == "COMPLETED"
    finished_each_once(run, 400)
    assert not (run.path / f"attempts/{attempt + 1}").exists()


@pytest.mark.slow
def test_a_rank_that_dies_without_a_controller_is_replaced_when_that_is_back(submit: Submit) -> None:
    run = submit()
    attempt = run.serving()
    # The controller tells the accounting some seconds later; without either nobody knows that the job has begun.
    accounting = ("sacct", "-j", run.job, "-X", "-n", "-P", "-o", "State")
    until("a record of the start", lambda: run.cluster.run(*accounting) == "RUNNING")
    run.cluster.kill("slurmctld")
    os.kill(run.pid_of_rank(0), signal.SIGKILL)
    assert run.state == "RUNNING"
    supervisor = next((run.path / "submitit").glob("*_0_log.out"))
    until("a supervisor that waits", lambda: "controller does not answer" in supervisor.read_text())
    run.cluster.restart("slurmctld")
    # Slurm may take a minute to see that the nodes are free again.
    attempt = run.serving(attempt + 1)
    run.cluster.kill("slurmctld")
    assert "is stopping" in run.client.run("stop", "survivor")
    assert run.end(attempt)["reason"] == "drained"
    run.cluster.restart("slurmctld")
    run.gone()
    assert sacct_state(run.cluster, run.job) == run.state == "COMPLETED"


@contextmanager
def lost(cluster: SlurmCluster, node: str, fault: str) -> Iterator[None]:
    """A node that Slurm does not hear of any more, though what runs there runs on."""
    away, back = (cluster.cut, cluster.join) if fault == "network" else (cluster.kill, cluster.restart)
    away(node)
    try:
        yield
    finally:
        back(node)


@pytest.mark.parametrize("fault", ["network", pytest.param("slurmd", marks=pytest.mark.slow)])
def test_a_run_goes_on_elsewhere_and_zombies_do_not_count(submit: Submit, fault: str) -> None:
    run = submit("nodes.count=1", "serving.source={kind: poisson, rate: 20, requests: 400}", "training.share=0.2")
    first = run.serving()
    host, zombies = run.host, run.processes()
    ranks = [run.pid_of_rank(rank) for rank in (0, 1)]
    with lost(run.cluster, host, fault):
        for pid in ranks:
            os.kill(pid, signal.SIGSTOP)
        second = run.serving(first + 1)
        assert run.end(first)["reason"] == "node-failure"
        assert run.host != host
        # The old ranks wake, see that they were left behind, and end: all of them, their supervisor included.
        for pid in ranks:
            os.kill(pid, signal.SIGCONT)
        until("end of the zombies", lambda: not zombies.keys() & run.processes().keys())
        assert run.end(first)["reason"] == "node-failure"
        assert "goes on with the run" in (run.path / f"attempts/{first}/failure.txt").read_text()
        run.ended("finished")
        run.gone()
        # Where Slurm's controller hears the old step end, it ends the new one, which has the same number, with it.
        assert fault == "slurmd" or not (run.path / f"attempts/{second + 1}").exists()
    finished_each_once(run, 400)
