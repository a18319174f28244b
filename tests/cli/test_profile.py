import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lemix_hpc.profiling.coefficients import load_coefficients
from tests.cli.conftest import LEMIX, Command
from tests.conftest import SlurmCluster

DEADLINE_S = 300
RECIPE = """\
name: tiny
nodes: {count: 2, stages: 2}
model:
  config: {model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 4, num_attention_heads: 4,
           num_key_value_heads: 2, vocab_size: 257, max_position_embeddings: 64}
training: {}
profile: {batches: [1, 2], lengths: [8, 16, 32, 64, 128], contexts: [16, 32], repeats: 2, warm_up: 1}
"""
POINTS = 2 * (8 + 8 + 4)  # of two stages; 128 tokens are more than the model's positions


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


def rows(job: Path) -> list[dict[str, str]]:
    with (job / "points.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def keys(found: list[dict[str, str]]) -> set[tuple[str, ...]]:
    return {tuple(row[name] for name in ("stage", "kind", "batch", "length", "context")) for row in found}


def jobs(out: Path) -> list[Path]:
    return [path for path in (out / "jobs").iterdir() if not path.name.startswith("array-")]


@pytest.mark.parametrize("sweep", ["nodes.stages", "=1", "nodes.stages=", "nodes.stages=1,,2"])
def test_a_sweep_has_a_key_and_values(inside: Command, tiny: Path, sweep: str) -> None:
    done = inside("profile", tiny, "--cluster", "local", "--array", sweep)
    assert done.returncode == 2
    assert done.stderr.startswith(f"--array {sweep}: write it as section.key=value,value")


def test_mistakes_are_told_before_anything_starts(inside: Command, tiny: Path, tmp_path: Path) -> None:
    done = inside("profile", tiny, "--cluster", "local", "--array", "nodes.stages=2,40")
    assert done.returncode == 2
    assert "nodes.stages: 40 stages need as many decoder layers" in done.stderr
    assert not (tmp_path / "profiling").exists()


@pytest.mark.mpi
def test_profile_writes_a_file_that_a_run_takes(lemix: Command, tiny: Path, tmp_path: Path) -> None:
    done = lemix("profile", tiny, "--cluster", "local", "--json")
    assert done.returncode == 0, done.stderr
    assert f"{POINTS}/{POINTS}" not in done.stdout
    found = json.loads(done.stdout)
    assert (found["points"], found["did_not_fit"], found["stages"]) == (POINTS, 0, 2)
    path = Path(found["coefficients"])
    assert path.parent.parent == tmp_path / "profiling"
    assert path.name == "llama-164k-float32-s2.yaml"
    assert path.with_suffix(".csv").read_text() == (jobs(tmp_path / "profiling")[0] / "points.csv").read_text()
    run = lemix(
        *("run", tiny, "--cluster", "local", "--json"),
        *("--set", f"engine.coefficients={path}", "--set", "training=null", "--set", "nodes.count=1"),
        *("--set", "serving={source: {kind: poisson, rate: 50, requests: 5}, max_prompt_tokens: 32}"),
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["serving"]["finished"] == 5


@pytest.mark.mpi
def test_vllm_is_profiled_too_and_simulations_and_its_runs_take_the_file(lemix: Command, tiny: Path) -> None:
    # Heads of a size that vLLM has on CPUs.
    tiny.write_text(RECIPE.replace("hidden_size: 64", "hidden_size: 128") + "engine: {kind: vllm}\n")
    less = ("--set", "profile.lengths=[8, 16, 32]", "--set", "serving={mode: generate}")
    done = lemix("profile", tiny, "--cluster", "local", "--json", *less)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    path = Path(found["coefficients"])
    assert (found["points"], found["did_not_fit"]) == (2 * (6 + 6 + 4), 0)
    assert path.name.endswith("-float32-vllm-s2.yaml")
    memories = load_coefficients(path).memory(2)
    assert memories is not None
    # Two layers of two heads of 32 values in float32, keys and values; a hidden state of 128.
    assert [(each.kv_bytes_per_token, each.input_bytes_per_token) for each in memories] == [(1024, 512)] * 2
    assert all((each.activation_bytes_per_token or 0) > 0 and each.weights_bytes > 10**8 for each in memories)
    source = "{kind: poisson, rate: 20, requests: 5}"
    work = (
        *("--set", f"engine.coefficients={path}", "--set", "training=null", "--set", "nodes.count=1"),
        *("--set", f"serving={{mode: generate, source: {source}, max_prompt_tokens: 32, max_new_tokens: 4}}", "--json"),
    )
    for command in (("simulate", tiny), ("run", tiny, "--cluster", "local")):
        done = lemix(*command, *work)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["serving"]["finished"] == 5


@pytest.mark.mpi
def test_an_interrupted_job_goes_on_and_measures_no_point_twice(lemix: Command, tiny: Path, tmp_path: Path) -> None:
    # The pauses leave time to interrupt it, however fast the machine is.
    command = [LEMIX, "profile", str(tiny), "--cluster", "local", "--set", "profile.pause_s=0.05"]
    # A test that was started in the background has INT ignored, and hands that down.
    reset = ["env", "--default-signal=INT"]
    first = subprocess.Popen(
        [*reset, *command], cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    out, end = tmp_path / "profiling", time.monotonic() + DEADLINE_S
    while not list(out.glob("jobs/*/points.csv")) or len(rows(jobs(out)[0])) < 3:
        assert time.monotonic() < end and first.poll() is None, "the job must be at work"
        time.sleep(0.01)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=DEADLINE_S)
    [job] = jobs(out)
    before = rows(job)
    assert 3 <= len(before) < POINTS
    done = lemix(*command[1:])
    assert done.returncode == 0, done.stderr
    assert jobs(out) == [job]
    after = rows(job)
    assert after[: len(before)] == before
    assert len(after) == len(keys(after)) == POINTS
    assert "llama-164k, float32, on" in done.stdout
    assert f"{POINTS} points in" in done.stdout
    again = lemix(*command[1:])
    assert again.returncode == 0, again.stderr
    assert rows(job) == after


@pytest.mark.mpi
@pytest.mark.slow
def test_a_local_sweep_runs_one_job_after_the_other(lemix: Command, tiny: Path, tmp_path: Path) -> None:
    done = lemix("profile", tiny, "--cluster", "local", "--array", "nodes.stages=1,2", "--set", "training=null")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "profiling").glob("*/*.yaml") if "jobs" not in path.parts) == [
        "llama-164k-float32-s1.yaml",
        "llama-164k-float32-s2.yaml",
    ]
    [listed, other] = json.loads(lemix("ps", "--json").stdout)
    assert {listed["state"], other["state"]} == {"COMPLETED"}
    assert "llama-164k" in lemix("report", listed["directory"]).stdout


@pytest.mark.slow
@pytest.mark.slurm
def test_a_job_array_on_the_cluster(
    lemix: Command, tiny: Path, tmp_path: Path, slurm_cluster: SlurmCluster, slurm_tmp_path: Path
) -> None:
    recipe = slurm_tmp_path / "tiny.yaml"
    recipe.write_text(tiny.read_text())
    places = {"LEMIX_RUNS": str(slurm_tmp_path / "runs"), "XDG_STATE_HOME": str(tmp_path / "state")}
    out = slurm_tmp_path / "profiling"
    command = [
        "profile",
        recipe,
        "--cluster",
        "slurm",
        "--out",
        out,
        "--array",
        "training.release=async,sync",
        "--json",
    ]
    done = lemix(*command, **slurm_cluster.env, **places)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["points"] for each in found] == [POINTS, POINTS]
    records = [json.loads((job / "run.json").read_text()) for job in jobs(out)]
    [array] = {record["job"].split("_")[0] for record in records}
    assert sorted(record["job"] for record in records) == [f"{array}_0", f"{array}_1"]
    states = slurm_cluster.run("sacct", "-X", "-n", "-j", array, "-o", "State").split()
    assert states == ["COMPLETED", "COMPLETED"]
