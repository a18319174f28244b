"""Activations that go to the host and come back: what they take there, and that the backward does not notice."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.meter import DeviceMemoryError, finish
from lemix_hpc.engines.protocol import MicroBatch
from lemix_hpc.engines.torch.build import build_stage
from lemix_hpc.engines.torch.gradients import GroupGradients
from lemix_hpc.engines.torch.stage import TorchStage
from tests.runtime.conftest import tiny_llama

ROWS, LENGTH = 2, 64
CHOICES = [("sync", "none"), ("sync", "layers"), ("sync", "all"), ("async", "none")]


def stages(release: str = "sync", mode: str = "offload", recompute: str = "none") -> list[TorchStage]:
    recipe = Recipe.model_validate(
        {
            "nodes": {"stages": 2},
            "model": {"config": tiny_llama(4)},
            "engine": {"dtype": "float32", "device": "cpu"},
            "training": {
                "release": release,
                "recompute": recompute,
                "micro_batch_size": ROWS,
                "sequence_length": LENGTH,
                "zero_stage": 0,
            },
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


@pytest.mark.parametrize(("release", "recompute"), CHOICES)
def test_a_backward_does_not_notice_that_its_activations_have_been_away(release: str, recompute: str) -> None:
    undisturbed = gradients(stages(release, recompute=recompute), moved=False)
    moved = gradients(stages(release, recompute=recompute), moved=True)
    for here, away in zip(undisturbed, moved, strict=True):
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


class Short:
    """A device that is out of memory at chosen moments of a backward: in the middle of a piece's graph, or while what came out
    of it is summed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, at: int, summing: bool) -> None:
        self._left = at
        self._grad, self._add = torch.autograd.grad, GroupGradients.add
        if summing:
            # A bound method would not be given the object.
            monkeypatch.setattr(GroupGradients, "add", lambda *arguments: self._adding(*arguments))  # noqa: PLW0108
        else:
            monkeypatch.setattr(torch.autograd, "grad", self._in_the_graph)

    @property
    def came(self) -> bool:
        return self._left < 0

    def _is_now(self) -> bool:
        self._left -= 1
        return self._left == -1

    def _in_the_graph(self, *arguments: Any) -> Any:
        gradients = self._grad(*arguments)  # which frees the graph
        if self._is_now():
            raise torch.OutOfMemoryError("full")
        return gradients

    def _adding(self, *arguments: Any) -> None:
        if self._is_now():
            raise torch.OutOfMemoryError("full")
        self._add(*arguments)


def backward(stage: TorchStage, number: int, grad: Any) -> Any:
    """It is called again if there is no memory for it."""
    try:
        return finish(stage.backward(number, grad))
    except DeviceMemoryError:
        return finish(stage.backward(number, grad))


def test_a_backward_without_memory_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for (release, recompute), summing in itertools.product(CHOICES, (False, True)):
        undisturbed, at = gradients(stages(release, recompute=recompute), moved=False), 0
        while True:
            first, last = stages(release, recompute=recompute)
            for number in (0, 1):
                hidden: Any = finish(first.forward(micro_batch(number), None))
                finish(last.forward(micro_batch(number), hidden))
            with monkeypatch.context() as patch:
                short = Short(patch, at=at, summing=summing)
                for number in (0, 1):
                    backward(first, number, backward(last, number, None))
            found = [gradient for stage in (first, last) for gradient in stage._gradients.take(0)]
            assert all(map(torch.equal, found, undisturbed)), (release, recompute, summing, at)
            if not short.came:
                break
            at += 7 if summing else 1
        assert at > 8, "every piece has failed once"
