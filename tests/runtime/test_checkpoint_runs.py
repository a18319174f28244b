"""Whole runs whose weights come out: what was served is what transformers and vLLM load, and other runs train on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lemix_hpc.checkpoints.manifest import Manifest
from lemix_hpc.checkpoints.store import Checkpoint, complete_paths
from lemix_hpc.config.load import load_recipe
from lemix_hpc.workload.load import load_workload
from tests.runtime.conftest import REPOSITORY, SUMS, FinishedRun, Run, sums_training, tiny_llama

pytestmark = pytest.mark.mpi

PROMPTS: dict[str, Any] = {"max_prompt_tokens": 32, "prompts": {"path": str(SUMS)}}
ROPE: dict[str, Any] = {"rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
"""Not the defaults, which a reader that misses them would take."""


TRAINING_FIRST = {"minimum_training_share": 0.9, "admission": "none"}
"""Training is over soon, however slow the machine is, and most requests are answered under the last weights."""


def serving(mode: str, requests: int) -> dict[str, Any]:
    """Requests that come for some time after training is over."""
    source = {"kind": "constant", "rate": 8, "requests": requests, "lengths": "lmsys-chat"}
    return {"source": source, "mode": mode, "max_new_tokens": 8, **PROMPTS}


def lemix(run: FinishedRun, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lemix")), "checkpoint", arguments[0], str(run.path), *arguments[1:]]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def exported(run: FinishedRun, directory: Path, *options: str) -> Path:
    done = lemix(run, "export", str(directory), *options)
    assert done.returncode == 0, done.stderr
    return directory


def newest(run: FinishedRun) -> Manifest:
    return Checkpoint.read(complete_paths(run.path / "checkpoints")[-1]).manifest


def served_under(run: FinishedRun, version: int) -> list[tuple[list[int], dict[str, Any]]]:
    """The prompts and records of requests that were answered under one weight version alone."""
    tokens = {
        request.id: list(request.tokens) for request in load_workload(load_recipe(run.path / "recipe.yaml")).requests
    }
    tasks = [task for task in run.tasks("serving") if task["versions"] == [version, version]]
    assert len(tasks) >= 5, "some requests came after the last step"
    return [(tokens[task["id"]], task) for task in tasks]


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    with torch.no_grad():
        output = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=None)
    return list(output[0, len(prompt) :].tolist())


def nll(model: Any, prompt: list[int]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, :-1].log_softmax(-1)
    return -float(logits.gather(1, torch.tensor(prompt[1:])[:, None]).sum())


def test_weights_come_out_and_training_goes_on_on_other_stages(lemix_run: Run, tmp_path: Path) -> None:
    checkpoint = {"every_steps": 5}
    first = lemix_run(
        {
            "name": "first",
            "nodes": {"stages": 2},
            "model": {"config": tiny_llama(tie_word_embeddings=True, **ROPE)},
            "serving": serving("generate", 40),
            "policy": TRAINING_FIRST,
            "training": sums_training(release="sync", micro_batches=12, checkpoint=checkpoint),
        }
    )
    manifest = newest(first)
    assert (manifest.step, manifest.dtype, [node.updates for node in manifest.saved]) == (12, "float32", [12])
    assert len(complete_paths(first.path / "checkpoints")) == 2, "the newest two stay"
    facts = first.report["checkpoints"]
    assert (facts["failed"], facts["last_step"]) == (0, 12)
    assert {span["kind"] for span in first.lines("spans.jsonl")} >= {"save", "step"}
    directory = exported(first, tmp_path / "exported")
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    for prompt, task in served_under(first, 12):
        assert greedy(model, prompt, len(task["output"])) == task["output"]
    assert AutoTokenizer.from_pretrained(directory).encode("1+1") == list(b"1+1")

    second = lemix_run(
        {
            "name": "second",
            "nodes": {"count": 2, "stages": 1},
            "model": {"path": str(directory)},
            "serving": serving("score", 40),
            "policy": TRAINING_FIRST,
            "training": sums_training(release="sync", micro_batches=8, across_nodes="sync", resume=str(first.path)),
        }
    )
    manifest = newest(second)
    last = AutoModelForCausalLM.from_pretrained(exported(second, tmp_path / "last")).eval()
    for prompt, task in served_under(second, 4):
        assert task["nll"] == pytest.approx(nll(last, prompt), rel=1e-4)
    assert [(node.node, node.updates, node.version) for node in manifest.saved] == [(0, 16, 4)]
    assert second.tasks("training")[0]["id"] == "t12", "the data go on where the first run stopped"
    assert second.losses()[0] < first.losses()[0] - 0.3, "it had learned something"


@pytest.mark.parametrize("mode", ["average", pytest.param("separate", marks=pytest.mark.slow)])
def test_nodes_that_learn_from_each_other_are_saved_together(lemix_run: Run, mode: str) -> None:
    training = sums_training(release="sync", micro_batches=24, checkpoint={"every_steps": 6, "keep": 9})
    recipe: dict[str, Any] = {
        "name": mode,
        "nodes": {"count": 2, "stages": 1},
        "model": {"config": tiny_llama(2)},
        "serving": serving("score", 20),
        "policy": {"placement": "round-robin"},
        "training": training | {"across_nodes": "average", "average_every": 2},
    }
    if mode == "separate":
        recipe |= {"policy": {"placement": "separate"}, "training": training}
    run = lemix_run(recipe)
    found = [Checkpoint.read(path).manifest for path in complete_paths(run.path / "checkpoints")]
    assert found[-1].step == 24
    assert len(found) > 1
    for manifest in found:
        assert len({node.round for node in manifest.saved}) == 1, "right behind one average"
        assert len(manifest.saved) == (2 if mode == "average" else 1)
    assert lemix(run, "verify").returncode == 0


def stock_tokens(directory: Path, requests: list[tuple[list[int], int]], scratch: Path) -> list[list[int]]:
    """What stock vLLM in one process makes of an exported directory."""
    asked, answered = scratch / "requests.json", scratch / "tokens.json"
    asked.write_text(json.dumps(requests))
    done = subprocess.run(
        [sys.executable, "-m", "tests.engines.vllm.stock_process", str(directory), str(asked), str(answered)],
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


@pytest.mark.slow
def test_vllm_goes_on_from_torchs_training_and_stock_vllm_serves_what_comes_out(lemix_run: Run, tmp_path: Path) -> None:
    # vLLM on CPUs has no heads of size 16; 257 tokens are padded to 320.
    model = {"config": tiny_llama(num_attention_heads=2, num_key_value_heads=1, **ROPE)}
    torchs = lemix_run(
        {"name": "torch", "nodes": {"stages": 1}, "model": model, "training": sums_training(micro_batches=10)}
    )
    vllms = lemix_run(
        {
            "name": "vllm",
            "nodes": {"stages": 2},
            "model": model,
            "engine": {"kind": "vllm"},
            "serving": serving("generate", 40),
            "policy": TRAINING_FIRST,
            "training": sums_training(release="sync", micro_batches=10, resume=str(torchs.path)),
        }
    )
    assert newest(vllms).saved[0].updates == 20
    assert vllms.losses()[0] < torchs.losses()[0] - 0.3, "vLLM's stages started from what torch's had learned"
    directory = exported(vllms, tmp_path / "exported")
    served = served_under(vllms, 10)
    requests = [(prompt, len(task["output"])) for prompt, task in served]
    expected = [task["output"] for _, task in served]
    assert stock_tokens(directory, requests, tmp_path) == expected
    whole = AutoModelForCausalLM.from_pretrained(directory).eval()
    assert [greedy(whole, prompt, count) for prompt, count in requests] == expected
