from collections.abc import Iterable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lemix_hpc.engines.protocol import Work
from lemix_hpc.engines.torch.adamw import ChunkedAdamW

LEARNING_RATE, WEIGHT_DECAY = 1e-2, 0.1
Shapes = list[list[int]]
shapes = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=3), min_size=1, max_size=5)


def optimizer(parameters: list[torch.Tensor], *, chunk: int, in_place: bool) -> ChunkedAdamW:
    return ChunkedAdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, chunk=chunk, in_place=in_place)


def finish(work: Work[None]) -> int:
    """Do all pieces, and count the stops between them."""
    return sum(1 for _ in work)


def tensors(shapes: Shapes, seed: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=draw) for shape in shapes]


def flat(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(1, 5000), st.sampled_from([1.0, 0.37]), st.integers(0, 2**30))
def test_any_cut_gives_the_very_bits_of_torchs_own_optimizer(
    shapes: Shapes, chunk: int, scale: float, seed: int
) -> None:
    weights = tensors(shapes, seed)
    plain, apart, padded = (
        [w.clone() for w in weights],
        [w.clone() for w in weights],
        torch.cat([flat(weights), torch.ones(3)]),
    )
    torchs = torch.optim.AdamW(plain, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    published = optimizer(apart, chunk=chunk, in_place=False)
    in_place = optimizer([padded], chunk=chunk, in_place=True)
    for step in range(3):
        grads = tensors(shapes, seed + 1 + step)
        for weight, grad in zip(plain, grads, strict=True):
            weight.grad = grad * scale
        torchs.step()
        before = flat(apart)
        finish(published.prepare([grad.clone() for grad in grads], scale))
        assert torch.equal(flat(apart), before), "nothing changes before it is published"
        published.step()
        finish(in_place.prepare(grads, scale))
        in_place.step()
        assert torch.equal(flat(apart), flat(plain))
        assert torch.equal(padded[:-3], flat(plain))
        assert torch.equal(padded[-3:], torch.ones(3)), "padding is no parameter"
    for mine, theirs in zip(apart, plain, strict=True):
        assert published.state[mine].keys() == torchs.state[theirs].keys()
        assert all(torch.equal(published.state[mine][name], value) for name, value in torchs.state[theirs].items())


def test_work_stops_about_once_per_chunk_whatever_the_parameters() -> None:
    for shapes in ([[64 * 1000]], [[64]] * 1000, [[640, 90], [100, 64]]):
        weights = tensors(shapes, 0)
        stops = finish(optimizer(weights, chunk=6400, in_place=True).prepare(tensors(shapes, 1), 1.0))
        assert 9 <= stops <= 11


def test_a_step_without_a_prepared_update_changes_nothing() -> None:
    weights = tensors([[5]], 0)
    before = weights[0].clone()
    stepped = optimizer(weights, chunk=64, in_place=False)
    stepped.step()
    assert torch.equal(weights[0], before)
    assert not stepped.state


def test_assigned_values_go_where_their_parameters_are() -> None:
    weights = tensors([[3], [2, 2]], 0)
    held = torch.zeros(8)
    optimizer([held], chunk=64, in_place=True).assign([weight.bfloat16() for weight in weights])
    assert torch.equal(held, torch.cat([flat(weights).bfloat16().float(), torch.zeros(1)]))
