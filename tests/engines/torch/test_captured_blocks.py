"""Blocks that run as graphs, on a stand-in whose graphs have memory of their own, as a GPU's: nothing is learned otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.training_section import Training
from lemix_hpc.engines.protocol import ServeSequence
from lemix_hpc.engines.torch import build
from lemix_hpc.engines.torch.captured_blocks import CapturedBlocks, Piece, captured_blocks
from lemix_hpc.engines.torch.module import StageModule
from tests.engines.torch.conftest import MakePipeline, Pipeline, TinyRecipe, finish
from tests.engines.torch.test_training import CASES, OPTIMIZER, texts, train

ROWS, LENGTH = 2, 16
MODES: list[dict[str, Any]] = [
    {"release": "async"},
    {"release": "sync"},
    {"release": "sync", "recompute": "layers"},
    {"release": "sync", "recompute": "all"},
]


class Graphs:
    """Captures pieces as `torch.cuda.make_graphed_callables` does, by its code: what goes in is copied, and what comes out of a
    forward and of a backward lies where the next one writes. `ran`: how often a forward did. `memory`: what comes
    out of them."""

    def __init__(self) -> None:
        self.ran = 0
        self.memory: list[torch.Tensor] = []

    def capture(self, piece: Piece, sample: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        parameters = list(piece.parameters())
        wanted = [sample, *parameters]
        outputs, gradients = piece(sample).detach().clone(), [torch.empty_like(tensor) for tensor in wanted]
        kept: list[torch.Tensor] = []
        self.memory += [outputs, *gradients]

        class Graphed(torch.autograd.Function):
            @staticmethod
            def forward(_context: Any, hidden: torch.Tensor, *_parameters: torch.Tensor) -> torch.Tensor:
                self.ran += 1
                sample.data.copy_(hidden)
                # A graph that runs saves nothing that anybody is told of.
                with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_same, _same):
                    kept[:] = [piece(sample)]
                outputs.copy_(kept[0])
                output: torch.Tensor = outputs.detach()
                return output

            @staticmethod
            def backward(_context: Any, gradient: torch.Tensor) -> Any:
                found = torch.autograd.grad(kept[0], wanted, gradient, retain_graph=True)
                for own, new in zip(gradients, found, strict=True):
                    own.copy_(new)
                return tuple(own.detach() for own in gradients)

        def run(hidden: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = Graphed.apply(hidden, *parameters)  # type: ignore[no-untyped-call]
            return output

        return run


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    """Stages whose recipe asks for graphs get these."""
    stand_in = Graphs()

    def captured(module: StageModule, training: Training | None) -> CapturedBlocks | None:
        if training is None or not training.cuda_graphs:
            return None
        return CapturedBlocks(module, training.micro_batch_size, training.sequence_length, stand_in.capture)

    monkeypatch.setattr(build, "captured_blocks", captured)
    return stand_in


def pair(make: TinyRecipe, pipeline: MakePipeline, family: str, stages: int, **training: Any) -> list[Pipeline]:
    """Without graphs, and with them."""
    shape = {"micro_batch_size": ROWS, "sequence_length": LENGTH}
    recipes = [make(family, stages, cuda_graphs=on, **shape, **OPTIMIZER, **training) for on in (False, True)]
    return [pipeline(recipe) for recipe in recipes]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "-".join(mode.values()))
@pytest.mark.parametrize(("family", "stages", "order"), CASES)
def test_losses_norms_and_weights_are_those_without_graphs(
    family: str,
    stages: int,
    order: str,
    mode: dict[str, Any],
    tiny_recipe: TinyRecipe,
    pipeline: MakePipeline,
    graphs: Graphs,
) -> None:
    """In `gpipe` with several micro-batches one has the graphs, and the others run by kernels."""
    plain, captured = pair(tiny_recipe, pipeline, family, stages, schedule=order, **mode)
    data = texts(4)
    assert train(captured, data, order=order) == train(plain, data, order=order)
    assert captured.norms == plain.norms
    assert captured.weights() == plain.weights()
    assert graphs.ran > 0


def test_serving_between_pieces_changes_nothing(
    tiny_recipe: TinyRecipe, pipeline: MakePipeline, graphs: Graphs, prompts: list[list[int]]
) -> None:
    plain, captured = pair(tiny_recipe, pipeline, "llama-tied", 2, release="sync", recompute="layers")
    answers: list[Any] = []

    def serve() -> None:
        answers.append(captured.serve([ServeSequence(len(answers), len(prompts[0]), 0, True, prompts[0])]))

    data = texts(2)
    assert train(captured, data, between=serve) == train(plain, data)
    assert captured.weights() == plain.weights()
    assert len(answers) > 20 and graphs.ran > 0


def test_one_micro_batch_has_the_graphs_until_it_is_through(
    tiny_recipe: TinyRecipe, pipeline: MakePipeline, graphs: Graphs
) -> None:
    _, node = pair(tiny_recipe, pipeline, "llama", 1, release="sync")
    [engine], blocks = node.stages, 4
    first, second, third = node.micro_batches(0, texts(1, 3)[0])
    counts = []
    for run, micro_batch in (
        (node.forward, first),
        (node.forward, second),
        (node.backward, second),
        (node.backward, first),
        (node.forward, third),
    ):
        before = graphs.ran
        run(micro_batch)
        counts.append(graphs.ran - before)
    assert counts == [blocks, 0, 0, 0, blocks]
    node.backward(third)
    [dropped] = node.micro_batches(1, texts(1, 1)[0])
    work = engine.forward(dropped, None)
    next(work)
    work.close()
    before = graphs.ran
    node.forward(node.micro_batches(2, texts(1, 1)[0])[0])
    assert graphs.ran - before == blocks


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "-".join(mode.values()))
def test_what_goes_to_other_stages_stays_as_it_is(
    mode: dict[str, Any], tiny_recipe: TinyRecipe, pipeline: MakePipeline, graphs: Graphs
) -> None:
    """It may be on its way for as long as the next micro-batch of this stage takes."""
    _, node = pair(tiny_recipe, pipeline, "llama", 2, **mode)
    first, last = node.stages
    micro_batches = node.micro_batches(0, texts(1, 3)[0])
    hidden = [finish(first.forward(micro_batch, None)) for micro_batch in micro_batches[:2]]
    sent = [bytes(payload.data) for payload in hidden]
    gradients = []
    for micro_batch, payload in zip(micro_batches, hidden, strict=False):
        finish(last.forward(micro_batch, payload))
        gradients.append(finish(last.backward(micro_batch.id, None)))
        sent.append(bytes(gradients[-1].data))
    assert [bytes(payload.data) for payload in (*hidden, *gradients)] == sent
    assert sent[2] != sent[3] and graphs.ran > 0


def test_other_shapes_run_by_kernels(tiny_recipe: TinyRecipe, pipeline: MakePipeline, graphs: Graphs) -> None:
    plain, captured = pair(tiny_recipe, pipeline, "llama", 2)
    data = texts(2, rows=1)
    assert train(captured, data) == train(plain, data)
    assert captured.weights() == plain.weights()
    assert graphs.ran == 0


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "-".join(mode.values()))
def test_what_goes_to_the_host_is_never_memory_of_graphs(
    mode: dict[str, Any], tiny_recipe: TinyRecipe, pipeline: MakePipeline, graphs: Graphs
) -> None:
    gradients = []
    shape = {"micro_batch_size": ROWS, "sequence_length": LENGTH}
    for recipe in (tiny_recipe("llama", 2, cuda_graphs=on, **shape, **mode) for on in (False, True)):
        limited = {"memory": recipe.policy.memory.model_copy(update={"capacity_gb": 1.0})}
        node = pipeline(recipe.model_copy(update={"policy": recipe.policy.model_copy(update=limited)}))
        micro_batches = node.micro_batches(0, texts(1, 3)[0])
        for micro_batch in micro_batches:
            node.forward(micro_batch)
            for stage in node.stages:
                assert stage.offload(micro_batch.id).remaining() == 0
            assert all(tensor.untyped_storage().nbytes() for tensor in graphs.memory)
        for micro_batch in micro_batches:
            for stage in node.stages:
                assert stage.bring_back(micro_batch.id).remaining() == 0
            node.backward(micro_batch)
        gradients.append([gradient.clone() for stage in node.stages for gradient in stage._gradients.take(0)])
    assert all(map(torch.equal, *gradients))
    assert graphs.ran > 0


def test_a_cpu_captures_none(tiny_recipe: TinyRecipe, pipeline: MakePipeline) -> None:
    with pytest.raises(UserError, match=r"training\.cuda_graphs: needs a GPU, and this stage is on cpu"):
        pipeline(tiny_recipe("llama", cuda_graphs=True))
    [stage] = pipeline(tiny_recipe("llama", learning_rate=1e-3)).stages
    assert captured_blocks(stage._module, Training()) is None
    assert captured_blocks(stage._module, None) is None
