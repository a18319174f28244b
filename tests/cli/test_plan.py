import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.what_fits import MODELS
from tests.cli.conftest import REPOSITORY, Command

RECIPES = REPOSITORY / "recipes"


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Two stages of an 8B model that vLLM serves on GPUs."""
    content: dict[str, Any] = {
        "name": "large",
        "nodes": {"stages": 2},
        "model": {"config": MODELS["Llama-3.1-8B"]},
        "engine": {"kind": "vllm", "device": "cuda", "vllm": {"kv_cache_gb": 2}},
        "serving": {"http": {}},
        "training": {"sequence_length": 2048, "data": {"path": str(RECIPES / "data" / "sums.jsonl")}},
    }
    path = tmp_path / "large.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_each_stage_and_how_to_use_the_gpus(inside: Command, large: Path) -> None:
    done = inside("plan", large, "--gpus", "8x80GB")
    said = " ".join(done.stdout.split())
    assert done.returncode == 1 and "Does not fit into 85.9 GB: stage 0, 1." in said
    assert "training.offload_optimizer: true" in said
    assert "Best: nodes.stages: 4; nodes.count: 2 for each host; engine.vllm.kv_cache_gb:" in said


def test_a_run_that_fits_says_so(inside: Command, large: Path) -> None:
    done = inside("plan", large, "--set", "nodes.stages=4", "--gpus", "8x80GB")
    assert done.returncode == 0 and "Fits into 85.9 GB a stage." in done.stdout


def test_the_capacity_may_be_the_recipes_and_json_is_in_bytes(inside: Command, large: Path) -> None:
    done = inside("plan", large, "--set", "policy.memory.capacity_gb=400", "--json")
    content = json.loads(done.stdout)
    assert (done.returncode, content["capacity"], content["keys_that_would_fit"]) == (0, 400e9, [])
    assert [stage["layers"] for stage in content["stages"]] == [[0, 17], [17, 32]]
    assert content["stages"][0]["device"]["KV cache"] == 2e9


def test_without_a_capacity_there_is_the_table_alone(inside: Command) -> None:
    done = inside("plan", RECIPES / "quickstart.yaml")
    assert done.returncode == 0 and "in its process" in done.stdout and "fit" not in done.stdout.lower()


def test_an_engine_without_weights_takes_what_its_coefficient_file_says(inside: Command) -> None:
    done = inside("plan", RECIPES / "emulated-a100.yaml", "--set", "policy.memory.capacity_gb=80", "--json")
    content = json.loads(done.stdout)
    assert content["stages"][0]["device"]["weights"] == 16 * 404766720
    assert (content["stages"][1]["parameters"], done.returncode) == (None, 0)
    told = inside("plan", RECIPES / "emulated-a100.yaml", "--set", "policy.memory.capacity_gb=10")
    assert told.returncode == 1 and "Does not fit into 10.0 GB: stage 0, 1." in told.stdout


@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        ("quickstart.yaml", ["--gpus", "many"], "such as 8x80GB"),
        ("quickstart.yaml", ["--set", "nodes.stages=99"], "decoder layers"),
    ],
)
def test_what_cannot_be_planned_is_named(inside: Command, name: str, more: list[str], says: str) -> None:
    done = inside("plan", RECIPES / name, *more)
    assert done.returncode == 2 and says in done.stderr
