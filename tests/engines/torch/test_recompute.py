"""`training.recompute`: what is computed again is the same to the last bit, and what is kept is as little as it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lemix_hpc.config.training_section import Recompute
from lemix_hpc.engines.protocol import MicroBatch, Payload, ServeSequence
from lemix_hpc.engines.torch.micro_batch import Segment
from lemix_hpc.engines.torch.stage import TorchStage
from tests.engines.torch.conftest import LAYERS, VOCAB, MakePipeline, Pipeline, TinyRecipe, finish
from tests.engines.torch.test_training import CASES, OPTIMIZER, texts, train

ROWS, LENGTH = 2, 64
COMPUTES_AGAIN: list[Recompute] = ["layers", "all"]


def gradients(node: Pipeline, order: str) -> tuple[list[float], list[torch.Tensor]]:
    """Of the losses of a group of three micro-batches on all stages, before its step."""
    micro_batches, losses = node.micro_batches(0, texts(1, 3)[0]), []
    if order == "gpipe":
        losses = [node.forward(micro_batch) for micro_batch in micro_batches]
    for micro_batch in micro_batches:
        if order != "gpipe":
            losses.append(node.forward(micro_batch))
        node.backward(micro_batch)
    return losses, [gradient for stage in node.stages for gradient in stage._gradients.take(0)]


@pytest.mark.parametrize("recompute", COMPUTES_AGAIN)
@pytest.mark.parametrize(("family", "stages", "order"), CASES)
def test_losses_gradients_and_weights_are_those_of_a_stage_that_keeps_all(
    family: str, stages: int, order: str, recompute: Recompute, tiny_recipe: TinyRecipe, pipeline: MakePipeline
) -> None:
    common: dict[str, Any] = {"release": "sync", "schedule": order, **OPTIMIZER}
    kept, again = (pipeline(tiny_recipe(family, stages, recompute=how, **common)) for how in ("none", recompute))
    (losses, own), (other_losses, other) = gradients(kept, order), gradients(again, order)
    assert losses == other_losses
    assert all(map(torch.equal, own, other)) and any(gradient.abs().max() > 0 for gradient in own)
    data = texts(4)
    assert train(kept, data, order=order) == train(again, data, order=order)
    assert kept.norms == again.norms
    assert kept.weights() == again.weights()


@pytest.mark.parametrize(("recompute", "pieces"), [("none", [2, 3]), ("layers", [4, 5]), ("all", [5, 3])])
def test_a_backward_stops_between_layers_that_it_computes_again_and_serving_there_changes_nothing(
    recompute: Recompute, pieces: list[int], tiny_recipe: TinyRecipe, pipeline: MakePipeline, prompts: list[list[int]]
) -> None:
    recipe = tiny_recipe("llama-tied", 2, release="sync", recompute=recompute, **OPTIMIZER)
    whole, stopped = pipeline(recipe), pipeline(recipe)
    served = 0

    def serve() -> None:
        nonlocal served
        served += 1
        stopped.serve([ServeSequence(served, len(prompts[0]), 0, True, prompts[0])])

    data = texts(3)
    assert train(whole, data) == train(stopped, data, between=serve)
    assert whole.weights() == stopped.weights()
    [micro_batch] = whole.micro_batches(9, data[0][:1])
    whole.forward(micro_batch)
    flowing, counted = None, list[int]()
    for stage in reversed(whole.stages):
        stops = 0

        def stop() -> None:
            nonlocal stops
            stops += 1

        flowing = finish(stage.backward(micro_batch.id, flowing), stop)
        counted.insert(0, stops + 1)
    # Of each stage with two layers; the last one has the loss as well, and keeps all with `all`.
    assert counted == pieces


@pytest.mark.parametrize("recompute", COMPUTES_AGAIN)
def test_weights_may_not_change_before_the_backward(
    recompute: Recompute, tiny_recipe: TinyRecipe, pipeline: MakePipeline
) -> None:
    node = pipeline(tiny_recipe("llama", 2, release="sync", recompute=recompute, **OPTIMIZER))
    [micro_batch] = node.micro_batches(0, texts(1, 1)[0])
    node.forward(micro_batch)
    assert [stage.holds_graph for stage in node.stages] == [True, True]
    node.backward(micro_batch)
    assert [stage.holds_graph for stage in node.stages] == [False, False]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_rests_on_a_stage_is_what_its_accounts_say(
    family: str, tiny_recipe: TinyRecipe, pipeline: MakePipeline
) -> None:
    rests: dict[str, list[int]] = {}
    for recompute in ("none", "layers", "all"):
        sizes = {"micro_batch_size": ROWS, "sequence_length": LENGTH}
        node = pipeline(tiny_recipe(family, 2, release="sync", schedule="gpipe", recompute=recompute, **sizes))
        tokens = np.random.default_rng(0).integers(0, VOCAB, (1, ROWS, LENGTH), dtype=np.int32)
        [micro_batch] = node.micro_batches(0, tokens)
        flowing, rests[recompute] = None, []
        for stage in node.stages:
            flowing, kept = rest(stage, micro_batch, flowing)
            rests[recompute].append(kept)
        takes = [stage.takes.activation_bytes for stage in node.stages if stage.takes is not None]
        assert rests[recompute][0] == pytest.approx(ROWS * LENGTH * takes[0], rel=0.05)
        # The last stage keeps what its loss takes as well, if it keeps a graph of that.
        more = 0 if recompute == "all" else ROWS * LENGTH * (VOCAB * 8 + 64 * 8)
        assert ROWS * LENGTH * takes[1] * 0.95 <= rests[recompute][1] <= (ROWS * LENGTH * takes[1] + more) * 1.05
    print(f"{family}: {LAYERS} layers on 2 stages, {ROWS * LENGTH} tokens, bytes from forward to backward: {rests}")
    for all_of, layers, alone in zip(rests["none"], rests["layers"], rests["all"], strict=True):
        assert alone < layers < all_of


def rest(stage: TorchStage, micro_batch: MicroBatch, hidden: Payload | None) -> tuple[Any, int]:
    """What a forward gives, and the bytes that it leaves behind until its backward, without weights."""
    found: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = finish(stage.forward(micro_batch, hidden))
    current = stage._passes[micro_batch.id]
    if hidden is not None:
        note(current.entry)
    for segment in current.segments:
        assert isinstance(segment, Segment)
        for tensor in (segment.input, segment.output):
            if tensor is not None:
                note(tensor)
    for parameter in stage._module.parameters():
        found.pop(parameter.untyped_storage().data_ptr(), None)
    return result, sum(found.values())
