"""Activations that go to the host and come back: what they take there, and that the backward does not notice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.meter import finish
from lemix_hpc.engines.protocol import MicroBatch
from lemix_hpc.engines.torch.build import build_stage
from lemix_hpc.engines.torch.stage import TorchStage
from tests.runtime.conftest import tiny_llama

ROWS, LENGTH = 2, 64


def stages(release: str = "sync", mode: str = "offload") -> list[TorchStage]:
    recipe = Recipe.model_validate(
        {
            "nodes": {"stages": 2},
            "model": {"config": tiny_llama(4)},
            "engine": {"dtype": "float32", "device": "cpu"},
            "training": {"release": release, "micro_batch_size": ROWS, "sequence_length": LENGTH, "zero_stage": 0},
            "policy": {"memory": {"capacity_gb": 1.0, "mode": mode}},
        }
    )
    return [build_stage(recipe, stage=stage, device="cpu") for stage in (0, 1)]


def micro_batch(number: int) -> MicroBatch:
    tokens = np.random.default_rng(number).integers(0, 257, (ROWS, LENGTH), dtype=np.int32).tobytes()
    return MicroBatch(number, 0, number, 2, ROWS, LENGTH, tokens, tokens)


def gradients(pair: list[TorchStage], *, moved: bool) -> list[torch.Tensor]:
    """Of a group of two micro-batches; `moved`: what the first one keeps goes to the host and back on both stages."""
    first, last = pair
    for number in (0, 1):
        hidden: Any = finish(first.forward(micro_batch(number), None))
        finish(last.forward(micro_batch(number), hidden))
        if moved and number == 0:
            for stage in pair:
                assert stage.offload(0).remaining() == 0
                assert stage._passes[0].kept.nbytes == 0
    if moved:
        for stage in pair:
            assert stage.bring_back(0).remaining() == 0
    for number in (0, 1):
        finish(first.backward(number, finish(last.backward(number, None))))
    return [gradient.clone() for stage in pair for gradient in stage._gradients.take(0)]


@pytest.mark.parametrize("release", ["sync", "async"])
def test_a_backward_does_not_notice_that_its_activations_have_been_away(release: str) -> None:
    for here, away in zip(gradients(stages(release), moved=False), gradients(stages(release), moved=True), strict=True):
        assert torch.equal(here, away)


def test_the_accounts_go_by_what_a_graph_keeps() -> None:
    first, _ = stages()
    finish(first.forward(micro_batch(0), None))
    assert first.takes is not None
    # All but the output, which the next stage gets.
    assert first._passes[0].kept.nbytes == pytest.approx(ROWS * LENGTH * first.takes.activation_bytes, rel=0.05)


def test_a_stage_that_offloads_nothing_keeps_no_list_and_says_so() -> None:
    first, _ = stages(mode="wait")
    finish(first.forward(micro_batch(0), None))
    assert not first._passes[0].kept.storages
    with pytest.raises(ValueError, match="offloads nothing"):
        first.offload(0)
