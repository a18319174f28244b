"""The gradients of a group, and what is worked out of them in pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils import get_total_norm
from torch.utils._python_dispatch import TorchDispatchMode

from lemix_hpc.engines.protocol import GroupGradient, Payload, Work
from lemix_hpc.engines.torch import gradients
from lemix_hpc.engines.torch.gradients import GroupGradients
from lemix_hpc.engines.torch.stage import TorchStage
from tests.engines.torch.conftest import MakePipeline, TinyRecipe, finish
from tests.engines.torch.test_training import OPTIMIZER, texts, train

SHAPES = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=2).map(tuple), min_size=1, max_size=9)


def summed(
    shapes: Sequence[tuple[int, ...]], seed: int
) -> tuple[GroupGradients, list[torch.Tensor], list[torch.Tensor]]:
    """Gradients of group 0, the parameters, and the gradients' values."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [torch.zeros(shape) for shape in shapes]
    values = [torch.randn(shape, generator=generator) for shape in shapes]
    of_group = GroupGradients(parameters)
    for parameter, value in zip(parameters, values, strict=True):
        of_group.add(0, parameter, value.clone())
    return of_group, parameters, values


@given(shapes=SHAPES, seed=st.integers(0, 99), chunk=st.sampled_from([1, 50, 1 << 20]), leave_out=st.booleans())
def test_the_norm_in_pieces_is_torchs_own_to_the_last_bit(
    shapes: list[tuple[int, ...]], seed: int, chunk: int, leave_out: bool
) -> None:
    of_group, parameters, values = summed(shapes, seed)
    expected = get_total_norm(values[1:] if leave_out else values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "CHUNK", {"cpu": chunk})
        assert torch.equal(finish(of_group.norm(0, parameters[0] if leave_out else None)), expected)


@given(shapes=SHAPES, seed=st.integers(0, 99), chunk=st.sampled_from([1, 50, 1 << 20]))
def test_a_gradient_is_added_in_pieces(shapes: list[tuple[int, ...]], seed: int, chunk: int) -> None:
    of_group, parameters, values = summed(shapes, seed)
    other = torch.randn(shapes[-1], generator=torch.Generator().manual_seed(seed + 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "CHUNK", {"cpu": chunk})
        finish(of_group.add_to(0, parameters[-1], other))
    assert torch.equal(of_group.of(0, parameters[-1]), values[-1] + other)


def test_a_piece_has_about_a_chunk_of_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "CHUNK", {"cpu": 100})
    of_group, _, _ = summed([(10,)] * 25 + [(150,)] * 3, 1)
    assert pieces(of_group.norm(0)) == 2 + 3 + 1  # the third takes the last 50 of the short ones along
    assert finish(of_group.norm(1)) == 0.0, "nothing was added to that group"


def pieces(work: Work[torch.Tensor]) -> int:
    return 1 + sum(1 for _ in work)


class Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(call))
        return call(*args, **(kwargs or {}))


@pytest.mark.parametrize(("family", "stages"), [("llama", 1), ("llama-tied", 1), ("llama-tied", 2)])
def test_a_stage_seals_in_pieces_that_change_nothing_and_reads_the_norm_at_the_end(
    family: str, stages: int, tiny_recipe: TinyRecipe, pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading it waits for a GPU. Steps are those of stages that seal in one go; one that ends between two pieces has lost
    nothing but the gradient."""
    recipe, data = tiny_recipe(family, stages, release="sync", **OPTIMIZER), texts(3)
    whole, node = pipeline(recipe), pipeline(recipe)
    losses = train(whole, data)
    monkeypatch.setattr(gradients, "CHUNK", {"cpu": 1})
    for stage in node.stages:
        monkeypatch.setattr(stage, "seal", partial(watched, stage, stage.seal))
    assert train(node, data) == losses
    assert node.norms == whole.norms
    assert node.weights() == whole.weights()


def watched(
    stage: TorchStage, seal: Callable[[int, Payload | None], Work[GroupGradient]], group: int, tied: Payload | None
) -> Work[GroupGradient]:
    work, before, reads = seal(group, tied), state(stage), []
    while True:
        with Calls() as calls:
            try:
                next(work)
            except StopIteration as end:
                sealed: GroupGradient = end.value
                break
            finally:
                reads.append("aten._local_scalar_dense.default" in calls.names)
        assert state(stage) == before
        yield
    assert state(stage) == before
    assert reads == [False] * (len(reads) - 1) + [True]
    assert len(reads) >= len(list(stage._module.parameters())), (
        "a piece for each tensor but the tied one of the last stage"
    )
    return sealed


def state(stage: TorchStage) -> list[bytes]:
    """Weights, master copy and moments."""
    optimizer = stage._stepped_by()
    tensors = [
        *stage._module.parameters(),
        *optimizer.master(),
        *(each for pair in optimizer.moments() for each in pair),
    ]
    return [tensor.detach().numpy().tobytes() for tensor in tensors]
