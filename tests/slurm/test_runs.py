"""Whole runs on the real cluster: what a user sees of a run from submission to report."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, SlurmCluster
from tests.slurm.conftest import LEMIX, PATIENCE_S, Client, sacct_state

pytestmark = pytest.mark.slurm


def test_azure_trace_and_gsm8k_on_two_nodes(
    slurm_cluster: SlurmCluster, client: Client, slurm_tmp_path: Path, trial_data: Path
) -> None:
    out = slurm_tmp_path / "azure"
    gsm8k = trial_data / "gsm8k" / "train.jsonl"
    settings = {
        "serving.source.path": trial_data / "azure-llm-2023" / "conv.csv",
        "serving.prompts.path": gsm8k,
        "training.data.path": gsm8k,
    }
    overrides = [part for key, path in settings.items() for part in ("--set", f"{key}={path}")]
    recipe = str(REPOSITORY / "recipes" / "azure-gsm8k.yaml")
    report = json.loads(client.run("run", recipe, "--cluster", "slurm", *overrides, "--out", str(out), "--json"))

    assert (report["nodes"], report["stages"], report["engine"]) == (2, 2, "torch")
    assert report["serving"]["finished"] == report["serving"]["received"] == 200
    assert report["training"]["loss_last"] < report["training"]["loss_first"] - 0.5
    assert report["weight_versions"]["mixed_batches"] == 0
    job = json.loads((out / "run.json").read_text())["job"]
    assert sacct_state(slurm_cluster, job) == "COMPLETED"
    hosts = {
        line.split()[-1] for log in (out / "logs").rglob("rank-*.log") for line in log.read_text().splitlines()[:1]
    }
    assert len(hosts) == 2, "two nodes of the cluster took part"
    assert {path.name for path in out.iterdir()} >= {"recipe.yaml", "job.sbatch", "spans.jsonl", "tasks.jsonl"}


def test_a_run_outlives_the_client_that_submitted_it(client: Client, slurm_tmp_path: Path) -> None:
    out = slurm_tmp_path / "detached"
    recipe = str(REPOSITORY / "recipes" / "emulated-a100.yaml")
    small = ["--set", "nodes.count=2", "--set", "serving.source.duration_s=3"]
    submit = client.start("submit", recipe, "--cluster", "slurm", *small, "--out", str(out), "--json")
    assert submit.stdout is not None
    submitted = json.loads(submit.stdout.readline())
    submit.send_signal(signal.SIGKILL)
    submit.wait()

    deadline = time.monotonic() + PATIENCE_S
    while (row := client.state(submitted["id"]))["state"] in ("PENDING", "RUNNING", "COMPLETING"):
        assert time.monotonic() < deadline, row
        time.sleep(0.5)
    assert row["state"] == "COMPLETED"
    assert row["job"] == submitted["job"]
    assert row["served"] == row["requests"] > 0
    assert "rank 5: node 1, stage 1 on n" in client.run("logs", submitted["id"], "--rank", "5")
    assert json.loads(client.run("report", submitted["id"], "--json"))["serving"]["finished"] == row["served"]


def test_cancel_ends_the_job(slurm_cluster: SlurmCluster, client: Client, slurm_tmp_path: Path) -> None:
    recipe = str(REPOSITORY / "recipes" / "emulated-a100.yaml")
    arguments = ["--cluster", "slurm", "--set", "nodes.count=1", "--out", str(slurm_tmp_path / "long"), "--json"]
    submitted = json.loads(client.run("submit", recipe, *arguments))
    client.run("cancel", submitted["id"])
    assert sacct_state(slurm_cluster, submitted["job"]).startswith("CANCELLED")


def test_a_batch_script_of_ones_own(slurm_cluster: SlurmCluster, client: Client, slurm_tmp_path: Path) -> None:
    out = slurm_tmp_path / "batch"
    script = REPOSITORY / "recipes" / "emulated-a100.sbatch"
    small = ["--set", "nodes.count=2", "--set", "serving.source.duration_s=3", "--out", str(out)]
    environment = client.environment | {"PATH": f"{Path(LEMIX).parent}:{client.environment['PATH']}"}
    sbatch = ["sbatch", "--parsable", "--nodes=2", f"--output={slurm_tmp_path}/batch.log", str(script), *small]
    done = subprocess.run(sbatch, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # `sbatch --wait` looks only every half minute.
    ended = sacct_state(slurm_cluster, done.stdout.strip(), PATIENCE_S)
    log = (slurm_tmp_path / "batch.log").read_text()
    assert ended == "COMPLETED", log
    report = json.loads((out / "report.json").read_text())
    assert report["serving"]["finished"] == report["serving"]["received"] > 0
    assert "SLO attainment" in log
    assert client.state("batch")["state"] == "COMPLETED"
