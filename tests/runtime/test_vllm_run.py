"""Whole runs with vLLM: its tokens through our stages, and training beside it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from lemix_hpc.config.load import load_recipe
from lemix_hpc.workload.load import load_workload
from tests.engines.vllm.conftest import hugging_face
from tests.runtime.conftest import REPOSITORY, SUMS, FinishedRun, Run, sums_training
from tests.runtime.test_checkpoint_runs import exported

pytestmark = pytest.mark.mpi

PROMPTS = 100


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny-llama"
    hugging_face("llama", tied=False).save_pretrained(directory)
    return directory


def generating(requests: int, rate: float) -> dict[str, Any]:
    source = {"kind": "poisson", "rate": rate, "requests": requests, "lengths": "lmsys-chat"}
    lengths = {"max_prompt_tokens": 96, "max_new_tokens": 12}
    return {"source": source, "mode": "generate", "prompts": {"path": str(SUMS)}} | lengths


def paced(recipe: dict[str, Any]) -> dict[str, Any]:
    """Beside training whose steps are too small to change a weight, with tokens that may take their time, and batch requests
    among them."""
    training = sums_training(learning_rate=1e-30, micro_batches_per_step=2)
    serving = generating(PROMPTS, rate=12) | {"batch_requests": 0.4}
    slo = {"tpot_ms": 200, "ttft_ms": 1000}
    engine = recipe["engine"] | {"max_batch_requests": 32}
    return recipe | {"serving": serving, "training": training, "slo": slo, "engine": engine}


def serving_alone(checkpoint: Path, stages: int) -> dict[str, Any]:
    return {
        "name": f"vllm-{stages}",
        "nodes": {"stages": stages},
        "model": {"path": str(checkpoint)},
        "engine": {"kind": "vllm"},
        "serving": generating(PROMPTS, rate=50),
    }


@pytest.fixture(scope="module")
def stock_tokens(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """What stock vLLM in one process generates for the same requests."""
    directory = tmp_path_factory.mktemp("stock")
    recipe = directory / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(serving_alone(checkpoint, 1)))
    requests = load_workload(load_recipe(recipe)).requests
    asked, answered = directory / "requests.json", directory / "tokens.json"
    asked.write_text(json.dumps([(list(r.tokens), r.output_tokens) for r in requests]))
    done = subprocess.run(
        [sys.executable, "-m", "tests.engines.vllm.stock_process", str(checkpoint), str(asked), str(answered)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tokens: list[list[int]] = json.loads(answered.read_text())
    return tokens


def check_tokens(run: FinishedRun, stock_tokens: list[list[int]]) -> None:
    served = {task["id"]: task for task in run.tasks("serving")}
    assert len(served) == PROMPTS
    assert [served[f"r{number}"]["output"] for number in range(PROMPTS)] == stock_tokens


@pytest.mark.slow
@pytest.mark.parametrize("stages", [1, 2])
def test_tokens_through_stages_are_stock_vllms(
    lemix_run: Run, checkpoint: Path, stock_tokens: list[list[int]], stages: int
) -> None:
    run = lemix_run(serving_alone(checkpoint, stages))
    check_tokens(run, stock_tokens)
    assert all(task["versions"] == [0, 0] for task in run.tasks("serving"))


def test_batches_that_wait_until_they_are_due_have_stock_vllms_tokens(
    lemix_run: Run, checkpoint: Path, stock_tokens: list[list[int]]
) -> None:
    run = lemix_run(paced(serving_alone(checkpoint, 3)))
    check_tokens(run, stock_tokens)
    assert run.report["pace_ms"] == {"ttft": 1000, "tpot": 200}
    assert run.report["training"]["steps"] > 0
    _check_waiting(run)
    _check_classes(run)


def _check_waiting(run: FinishedRun) -> None:
    """Interactive requests wait for one another; batch ones go alone wherever there is time."""
    interactive = {task["id"] for task in run.tasks("serving") if task["service"] == "interactive"}
    batches = run.serving_batches().values()
    members = [sum(span["stage"] == 0 and span["task"] in interactive for span in spans) for spans in batches]
    together = [count for count in members if count]
    assert sum(together) / len(together) > 4, "seven requests a second, and five tokens a second for each"


def _check_classes(run: FinishedRun) -> None:
    served = run.tasks("serving")
    for service, limits in (("interactive", {"ttft", "tpot", "all"}), ("batch", {"window"})):
        members = [task for task in served if task["service"] == service]
        figures = run.report["serving"]["classes"][service]
        assert figures["received"] == figures["finished"] == len(members) > 20
        responses = [1e3 * (task["finished"] - task["arrival"]) for task in members]
        assert figures["response_ms"]["mean"] == pytest.approx(sum(responses) / len(responses))
        assert set(figures["attainment"]) == limits
        assert figures["inter_token_ms"]["p99"] >= figures["inter_token_ms"]["p50"] > 0.0
        assert figures["tokens_per_s"] > 0.0
    assert run.report["serving"]["classes"]["batch"]["attainment"] == {"window": 1.0}


def test_training_beside_vllm_takes_its_own_course_and_no_batch_mixes_versions(lemix_run: Run, tmp_path: Path) -> None:
    """With tied embeddings, which both stages hold, with rows added to them, in a vocabulary that vLLM pads."""
    checkpoint = tmp_path / "tied-llama"
    hugging_face("llama", tied=True, vocab_size=200).save_pretrained(checkpoint)
    recipe = {
        "name": "alone",
        "nodes": {"stages": 2},
        "model": {"path": str(checkpoint), "resize": True},
        "training": sums_training(
            release="sync", micro_batches_per_step=2, micro_batches=80, held_out={"share": 0.05, "documents": 8}
        ),
    }
    alone = lemix_run(recipe)
    beside = lemix_run(
        recipe | {"name": "beside", "engine": {"kind": "vllm"}, "serving": generating(requests=120, rate=12)}
    )
    assert alone.losses() == pytest.approx(beside.losses(), rel=1e-4)
    assert beside.losses()[-1] < beside.losses()[0] - 0.5
    # On samples that are not trained on, as torch's stages have it and as vLLM does.
    held_out = [run.report["training"]["held_out"] for run in (alone, beside)]
    assert held_out[0] == pytest.approx(held_out[1], rel=1e-3)
    assert held_out[0]["after"] < held_out[0]["before"] - 0.5
    for run in (alone, beside):
        found = load_file(exported(run, tmp_path / f"exported-{run.path.name}") / "model.safetensors")
        assert found["model.embed_tokens.weight"].shape == (257, 128)
    _check_versions(beside)
    _check_preparations(beside)


@pytest.mark.slow
def test_nodes_of_vllm_sum_their_gradients_by_themselves(lemix_run: Run, checkpoint: Path) -> None:
    recipe = {
        "name": "alone",
        "nodes": {"stages": 2},
        "model": {"path": str(checkpoint)},
        "training": sums_training(release="sync", micro_batches_per_step=4, micro_batches=40),
    }
    together = sums_training(
        release="sync", micro_batches_per_step=2, micro_batches=40, across_nodes="sync", sums="collective"
    )
    nodes = {
        "name": "together",
        "nodes": {"count": 2, "stages": 2},
        "engine": {"kind": "vllm"},
        "policy": {"placement": "round-robin"},
        "serving": generating(requests=60, rate=8),
        "training": together,
    }
    alone, summed = lemix_run(recipe), lemix_run(recipe | nodes)
    assert alone.losses() == pytest.approx(summed.losses(), rel=1e-4)
    assert summed.report["across_nodes"]["count"] == summed.report["training"]["steps"] == 10
    assert summed.report["serving"]["finished"] == 60
    assert summed.report["weight_versions"]["mixed_batches"] == 0


def _check_versions(run: FinishedRun) -> None:
    batches = run.serving_batches()
    assert len(batches) >= 200, "a slow machine forms few and large ones"
    for spans in batches.values():
        assert {span["stage"] for span in spans} == {0, 1}
        assert len({span["version"] for span in spans}) == 1
    versions = {spans[0]["version"] for spans in batches.values()}
    assert len(versions) > 10, "the weights must have changed a lot while these were served"
    served = run.tasks("serving")
    assert len(served) == 120
    assert any(task["versions"][0] < task["versions"][1] for task in served), "requests span versions"
    assert all(0 <= task["versions"][0] <= task["versions"][1] <= max(versions) for task in served)


def _check_preparations(run: FinishedRun) -> None:
    """The second stage has prepared batches before their activations came: that is time beside that of their spans."""
    spans = sorted(run.lines("spans.jsonl"), key=lambda span: span["start"])
    passes = {(span["stage"], span["batch"]): span["end"] - span["start"] for span in spans if span["kind"] == "serve"}
    measured = [event["BatchMeasured"]["seconds"] for event in run.lines("events.jsonl") if "BatchMeasured" in event]
    first, second = zip(*measured, strict=True)
    assert sum(first) == pytest.approx(sum(took for (stage, _), took in passes.items() if stage == 0))
    assert sum(second) > 1.001 * sum(took for (stage, _), took in passes.items() if stage == 1)
