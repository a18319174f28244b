"""The command on the real one-machine Slurm cluster."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.cli.conftest import LEMIX
from tests.conftest import SlurmCluster

pytestmark = pytest.mark.slurm

Command = Callable[..., CompletedProcess[str]]


@pytest.fixture
def on_cluster(lemix: Command, slurm_cluster: SlurmCluster, slurm_tmp_path: Path, tmp_path: Path) -> Command:
    """`lemix` as a user of the cluster, with runs where all nodes see them."""

    def call(*arguments: object) -> CompletedProcess[str]:
        places = {"LEMIX_RUNS": str(slurm_tmp_path / "runs"), "XDG_STATE_HOME": str(tmp_path / "state")}
        return lemix(*arguments, **slurm_cluster.env, **places)

    return call


@pytest.fixture
def shared_recipe(recipe: Path, slurm_tmp_path: Path) -> Path:
    """A recipe whose coefficient file all nodes see."""
    text = recipe.read_text()
    [coefficients] = re.findall(r"coefficients: (\S+)}", text)
    (slurm_tmp_path / "coefficients.yaml").write_text(Path(coefficients).read_text())
    path = slurm_tmp_path / "recipe.yaml"
    path.write_text(text.replace(coefficients, "coefficients.yaml"))
    return path


def test_run_over_two_hosts(on_cluster: Command, shared_recipe: Path, slurm_tmp_path: Path) -> None:
    out = slurm_tmp_path / "one"
    done = on_cluster("run", shared_recipe, "--cluster", "slurm", "--set", "nodes.count=2", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "5 finished of 5" in done.stdout
    [row] = json.loads(on_cluster("ps", "--json").stdout)
    assert (row["state"], row["directory"]) == ("COMPLETED", str(out))
    logs = [(out / f"logs/attempt-0/rank-{rank}.log").read_text() for rank in range(6)]
    hosts = {re.findall(r"on (\w+)", log)[0] for log in logs}
    assert len(hosts) == 2


def test_auto_takes_the_cluster_that_answers(on_cluster: Command, shared_recipe: Path) -> None:
    done = on_cluster("run", shared_recipe, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --ntasks-per-node=3" in done.stdout


def test_dry_run_asks_slurm_and_submits_nothing(
    on_cluster: Command, shared_recipe: Path, slurm_cluster: SlurmCluster, slurm_tmp_path: Path
) -> None:
    before = slurm_cluster.run("sacct", "-X", "-n", "-o", "JobID")
    done = on_cluster("run", shared_recipe, "--cluster", "slurm", "--dry-run")
    assert done.returncode == 0
    assert re.search(r"Job \d+ to start at .* using 3 processors", done.stderr)
    assert slurm_cluster.run("sacct", "-X", "-n", "-o", "JobID") == before
    assert not (slurm_tmp_path / "runs").exists()


def test_dry_run_of_an_impossible_job_is_exit_code_2(on_cluster: Command, shared_recipe: Path) -> None:
    done = on_cluster("run", shared_recipe, "--cluster", "slurm", "--dry-run", "--set", "cluster.partition=nowhere")
    assert done.returncode == 2
    assert "invalid partition specified: nowhere" in done.stderr
    other = ["--set", "cluster.sbatch={no-such-thing: 1}"]
    done = on_cluster("run", shared_recipe, "--cluster", "slurm", "--dry-run", *other)
    assert (done.returncode, "no-such-thing" in done.stderr) == (2, True)


def test_a_run_from_inside_a_job_that_ends_before_its_first_line(
    shared_recipe: Path, slurm_cluster: SlurmCluster, slurm_tmp_path: Path
) -> None:
    places = [f"LEMIX_RUNS={slurm_tmp_path}/runs", f"XDG_STATE_HOME={slurm_tmp_path}/state"]
    # A limit that would be none for the new job, were it to hear of it.
    outer = ["srun", "--ntasks=1", "env", *places, "SBATCH_TIMELIMIT=99999999", "SBATCH_NO_REQUEUE=1"]
    setup = "cluster.setup=[echo lost on the way >&2, exit 3]"
    command = [
        LEMIX,
        "run",
        str(shared_recipe),
        "--cluster",
        "slurm",
        "--set",
        setup,
        "--set",
        "cluster.sbatch={comment: x}",
    ]
    done = slurm_cluster.run("sh", "-c", f"{shlex.join([*outer, *command])} 2>&1 || true")
    assert "The run ended as FAILED." in done
    assert "lost on the way" in done
    [slurm] = [line for line in done.splitlines() if line.startswith("Slurm: job ")]
    assert re.fullmatch(r"Slurm: job \d+ is FAILED, exit code 3, on \S+(, reason NonZeroExitCode: its .*)?", slurm)
    job = slurm.split()[2]
    assert "TimeLimit=01:00:00" in slurm_cluster.run("scontrol", "show", "job", job)


def test_a_refused_job_leaves_no_run(on_cluster: Command, shared_recipe: Path, slurm_tmp_path: Path) -> None:
    done = on_cluster("submit", shared_recipe, "--cluster", "slurm", "--set", "cluster.partition=nowhere")
    assert done.returncode == 2
    assert "sbatch refused the job: invalid partition specified: nowhere" in done.stderr
    assert json.loads(on_cluster("ps", "--json").stdout) == []
    assert list((slurm_tmp_path / "runs").iterdir()) == []


def test_submit_and_cancel(on_cluster: Command, shared_recipe: Path) -> None:
    endless = "serving.source={kind: constant, rate: 1, requests: 1000}"
    started = json.loads(on_cluster("submit", shared_recipe, "--cluster", "slurm", "--set", endless, "--json").stdout)
    [row] = json.loads(on_cluster("ps", "--json").stdout)
    assert row["job"] == started["job"]
    assert row["state"] in ("PENDING", "CONFIGURING", "RUNNING")
    assert on_cluster("cancel", started["id"]).returncode == 0
    following = on_cluster("logs", started["id"], "--follow")  # returns when the job has ended
    assert following.returncode in (0, 2)  # 2: cancelled before any rank had a log
    [row] = json.loads(on_cluster("ps", "--json").stdout)
    assert row["state"] == "CANCELLED"


def test_a_failing_rank_ends_the_job_and_is_named(
    on_cluster: Command, shared_recipe: Path, slurm_tmp_path: Path
) -> None:
    trace = slurm_tmp_path / "trace.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n")
    changes = [f"serving.source={{kind: azure, path: {trace}}}", f"cluster.setup=[rm {trace}]"]
    source = [part for change in changes for part in ("--set", change)]
    out = slurm_tmp_path / "one"
    done = on_cluster("run", shared_recipe, "--cluster", "slurm", *source, "--out", out)
    assert done.returncode == 1
    assert "The run ended as FAILED." in done.stderr
    assert "rank 0 (node 0, leader) failed: UserError:" in done.stderr
    assert f"log: {out}/logs/attempt-0/rank-0.log" in done.stderr


def test_doctor_finds_the_cluster_sound(on_cluster: Command, shared_recipe: Path) -> None:
    done = on_cluster("doctor", shared_recipe, "--json")
    verdicts = {check["name"]: check["verdict"] for check in json.loads(done.stdout)}
    assert done.returncode == 0
    assert all(verdicts[name] == "ok" for name in ("slurm", "srun --mpi", "sacct", "shared directory", "recipe"))


def test_doctor_sees_that_runs_are_not_shared(lemix: Command, slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    # A node's /tmp is its own.
    done = lemix("doctor", "--json", **slurm_cluster.env, LEMIX_RUNS=str(tmp_path))
    [check] = [check for check in json.loads(done.stdout) if check["name"] == "shared directory"]
    assert check["verdict"] == "fail"
    assert "set LEMIX_RUNS to a directory that all hosts share" in check["text"]
    assert done.returncode == 1
