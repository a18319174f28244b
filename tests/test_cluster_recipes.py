"""The recipes for real clusters: they fit their GPUs by the plan, ask Slurm for what their batch scripts ask for, and run, as
far as a machine without GPUs tells: in simulated time, and one of them on emulated ranks."""

import json
import re
import shlex
from pathlib import Path

import pytest

from lemix_hpc.config.load import read_recipe
from lemix_hpc.config.walltime import parse_walltime
from lemix_hpc.launch.preflight import preflight_profile
from lemix_hpc.launch.profile import for_one_node
from tests.cli.conftest import Command, inside, lemix, own_runs
from tests.conftest import REPOSITORY
from tests.launch.conftest import FakeSlurm, fake_slurm

__all__ = ["fake_slurm", "inside", "lemix", "own_runs"]

GPUS = {
    "llama-3.1-8b-4xgpu": "4x80GB",
    "llama-3.1-8b-8xgpu-2-replicas": "8x80GB",
    "qwen2.5-14b-8xgpu": "8x80GB",
    "llama-3.1-70b-8xgpu-offload": "8x80GB",
    "gpt2-large": "2x24GB",
}
NAMES = [*GPUS, "tiny-cpu"]
REQUESTS, MICRO_BATCHES = 12, 6
H100 = REPOSITORY / "profiling" / "nvidia-h100-80gb-hbm3" / "llama-3.1-8b-bfloat16.yaml"
EMULATED = {"engine.kind": "emulated", "engine.coefficients": H100}
SHORTER = {
    "serving.window.limit": REQUESTS,
    "serving.max_new_tokens": 3,
    "training.share": "null",
    "training.micro_batches": MICRO_BATCHES,
}
A_SOURCE = {"serving.http": "null", "serving.source": "{kind: poisson, rate: 20, duration_s: 10}"}


def recipe_of(name: str) -> Path:
    return REPOSITORY / "recipes" / f"{name}.yaml"


def rehearsal(name: str) -> list[object]:
    """The recipe and what makes it a short run without GPUs."""
    endpoint = read_recipe(recipe_of(name)).recipe.serving.http is not None
    changes = EMULATED | SHORTER | (A_SOURCE if endpoint else {})
    return [recipe_of(name), *(part for key, value in changes.items() for part in ("--set", f"{key}={value}"))]


def options(script: str) -> dict[str, str]:
    """What a script asks Slurm for, its time in seconds."""
    found = dict(
        re.findall(r"^#SBATCH --(nodes|ntasks-per-node|cpus-per-task|gpus-per-node|mem|time)=(\S+)$", script, re.M)
    )
    return found | {"time": str(parse_walltime(found["time"]))}


@pytest.mark.parametrize("name", GPUS)
def test_it_fits_its_gpus(inside: Command, name: str) -> None:
    done = inside("plan", recipe_of(name), "--gpus", GPUS[name])
    assert done.returncode == 0, done.stdout
    assert f"recipes/{name}.yaml --gpus {GPUS[name]}" in recipe_of(name).read_text()


@pytest.mark.parametrize("name", NAMES)
def test_its_batch_script_asks_for_what_its_job_would(inside: Command, fake_slurm: FakeSlurm, name: str) -> None:
    # The parser of vLLM takes 20 s to import; tests/engines/vllm/test_check.py is about it.
    done = inside("run", recipe_of(name), "--cluster", "slurm", "--dry-run", "--set", "engine.vllm.args={}")
    assert done.returncode == 0, done.stderr
    assert fake_slurm.calls("sbatch"), "Slurm was asked"
    own = recipe_of(name).with_suffix(".sbatch").read_text()
    assert options(own) == options(done.stdout)
    assert own.endswith(f'\nlemix run recipes/{name}.yaml --cluster allocation "$@"\n')


@pytest.mark.parametrize("name", NAMES)
def test_its_profiling_job_has_what_it_needs(name: str) -> None:
    script = recipe_of(name).with_suffix(".profile.sbatch").read_text()
    command = shlex.split(script.splitlines()[-1])
    assert command[:5] == ["lemix", "profile", f"recipes/{name}.yaml", "--cluster", "allocation"]
    loaded = for_one_node(read_recipe(recipe_of(name), [text for text in command if "=" in text]))
    preflight_profile(loaded, "allocation")
    ready, asked = loaded.recipe, options(script)
    assert asked["ntasks-per-node"] == str(ready.nodes.stages + 1)
    assert asked["cpus-per-task"] == str(ready.cores)
    assert asked.get("gpus-per-node") == (None if name == "tiny-cpu" else str(ready.nodes.stages))
    assert ready.profile.time_budget_s < float(asked["time"])


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_in_simulated_time(inside: Command, name: str) -> None:
    done = inside("simulate", *rehearsal(name), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["serving"]["finished"], report["training"]["finished"]) == (REQUESTS, MICRO_BATCHES)


@pytest.mark.mpi
def test_it_runs_on_emulated_ranks(lemix: Command) -> None:
    done = lemix("run", *rehearsal("gpt2-large"), "--cluster", "local", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["serving"]["finished"], report["training"]["finished"]) == (REQUESTS, MICRO_BATCHES)
