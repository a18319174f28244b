"""What ends an attempt on the real cluster, and what follows: drains, requeues, restarts and renewal."""

import json
import os
import re
import signal
import subprocess

import pytest

from tests.conftest import SlurmCluster
from tests.slurm.conftest import Client, Submit, sacct_state, until

pytestmark = pytest.mark.slurm


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
    run.nothing_shared()
    assert run.end(first)["reason"] == "cancelled"
    assert sacct_state(run.cluster, run.job).startswith("CANCELLED")
    assert run.state == "CANCELLED"
    assert not (run.path / f"attempts/{first + 1}").exists()


def test_a_run_in_an_allocation_of_ones_own_stops_and_goes_on_there(
    submit: Submit, slurm_cluster: SlurmCluster, client: Client
) -> None:
    salloc = ["salloc", "--nodes=1", "--ntasks=2", "--no-shell", "--job-name=lemix-survivor"]
    granted = subprocess.run(salloc, env=client.environment, capture_output=True, text=True, check=True).stderr
    job = re.search(r"Granted job allocation (\d+)", granted)
    assert job is not None, granted
    client.environment |= {"SLURM_JOB_ID": job[1], "SLURM_JOB_NUM_NODES": "1"}
    work = ("nodes.count=1", "serving.source={kind: poisson, rate: 20, requests: 200}", "training.share=0.2")
    run = submit(*work, where="allocation")
    first = run.serving()
    assert "is stopping" in client.run("stop", "survivor")
    assert run.end(first)["reason"] == "drained"
    until("end of the supervisor", lambda: not run.processes())
    assert run.state == "COMPLETED"
    assert 0 < run.report["serving"]["finished"] < 200
    client.run("resume", "survivor")
    run.ended("finished")
    until("end of the supervisor", lambda: not run.processes())
    run.nothing_shared()
    assert slurm_cluster.run("squeue", "-h", "-j", job[1], "-o", "%T") == "RUNNING"
    report = run.report
    assert report["complete"] and report["serving"]["finished"] == 200
    assert report["training"]["finished"] == 50
