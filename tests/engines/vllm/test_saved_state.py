"""The training state behind fused parameters, cut by Hugging Face's names: any engine and number of stages takes it up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lemix_hpc.checkpoints.stage_state import SavedState, StageState
from lemix_hpc.config.training_section import Training
from lemix_hpc.engines.meter import finish
from lemix_hpc.engines.torch.optimizer import StageOptimizer
from lemix_hpc.engines.torch.payloads import Wire
from lemix_hpc.engines.torch.training import StageTraining
from tests.checkpoints.states import saved
from tests.engines.vllm.test_module import pair

CPU = torch.device("cpu")
TRAINING: dict[str, Any] = {"learning_rate": 1e-2, "weight_decay": 0.1, "warmup_steps": 4} | {
    "gradient_clipping": None  # the norm's last bits depend on how it is summed
}


@pytest.fixture(autouse=True)
def _no_traces() -> Iterator[None]:
    """A stage sets its process up for DeepSpeed; here the process goes on to other tests."""
    environment = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(environment)


def stage(module: Any, zero_stage: Any = 0) -> StageTraining:
    optimizer = StageOptimizer(module, Training(zero_stage=zero_stage, **TRAINING))
    return StageTraining(module, Wire(CPU), optimizer, keep_graphs=True, max_positions=None)


def step(training: StageTraining, number: int) -> None:
    """On gradients that are easily had, of a whole model and of its parts alike."""
    module, optimizer = training._module, training._stepped_by()
    grads = []
    for name, parameter in module.named_parameters():
        grad = torch.zeros_like(parameter)
        for part, values in module.saved_parts(name, grad):
            seed = int.from_bytes(part.encode()) % 1000 + number
            values.copy_(torch.randn(values.shape, generator=torch.Generator().manual_seed(seed)))
        grads.append(grad)
    finish(optimizer.prepare(grads, 1.0))
    finish(training.publish(number))


def state(*stages: StageTraining) -> list[StageState]:
    return [finish(each.snapshot()) for each in stages]


def bits(states: list[StageState]) -> dict[str, bytes]:
    return {name: values.tobytes() for each in states for name, values in each.tensors.items()}


@pytest.mark.parametrize("zero_stage", [0, 1])
@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("qwen2", True)])
def test_both_engines_take_up_what_either_has_saved(family: str, tied: bool, zero_stage: int, tmp_path: Path) -> None:
    """Query, key and value with their biases, and a vocabulary that vLLM pads."""
    whole: dict[str, Any] = {"first": True, "last": True}
    theirs, ours, _ = pair(family, tied, range(3), **whole)
    torchs, vllms = stage(theirs, zero_stage), stage(ours, zero_stage)
    places = [parameter.data_ptr() for parameter in ours.parameters()]
    for number in range(3):
        step(torchs, number)
        step(vllms, number)
    assert bits(state(torchs)) == bits(state(vllms)), "the same steps, by the same names"
    kept = saved(state(vllms), tmp_path / "vllm")
    for number in range(3, 6):
        step(vllms, number)
        step(torchs, number)
    course = bits(state(vllms))
    for engine in (torchs, vllms):
        engine.restore(kept)
        for number in range(3, 6):
            step(engine, number)
        assert bits(state(engine)) == course
    assert [parameter.data_ptr() for parameter in ours.parameters()] == places, "vLLM reads them there"
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in dict(ours.named_parameters()):
            assert not dict(ours.named_parameters())[name][300:].any()


def test_stages_of_one_engine_are_taken_up_by_one_of_the_other_and_back(tmp_path: Path) -> None:
    ends: list[dict[str, Any]] = [{"first": True, "last": False}, {"first": False, "last": True}]
    layers = (range(2), range(2, 3))
    split = [stage(pair("llama", True, part, **end)[1]) for part, end in zip(layers, ends, strict=True)]
    for number in range(3):
        for each in split:
            step(each, number)
    kept = saved(state(*split), tmp_path / "split")
    one = stage(pair("llama", True, range(3), first=True, last=True)[0])
    one.restore(kept)
    assert bits(state(one)) == bits(state(*split))
    back: SavedState = saved(state(one), tmp_path / "one")
    again = [stage(pair("llama", True, part, **end)[1]) for part, end in zip(layers, ends, strict=True)]
    for each in again:
        each.restore(back)
        step(each, 3)
    for each in split:
        step(each, 3)
    assert bits(state(*again)) == bits(state(*split))
    embeddings = [each._module.embedding.weight for each in again]
    assert torch.equal(embeddings[0], embeddings[1]), "both copies of a tied embedding"
    assert np.any(embeddings[0].detach().numpy())
