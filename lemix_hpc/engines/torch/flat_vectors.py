"""A stage's weights and gradients as one float32 vector on the host, for sums over nodes. Everything goes in short pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from lemix_hpc.engines.protocol import Vector, Work
from lemix_hpc.engines.torch.gradients import GroupGradients

PIECE = 1 << 18
"""Elements, 1 MiB: a fraction of a millisecond."""


def length(tensors: Iterable[torch.Tensor]) -> int:
    """Elements of all tensors together."""
    return sum(tensor.numel() for tensor in tensors)


@torch.no_grad()
def read(tensors: Sequence[torch.Tensor], into: Vector) -> Work[None]:
    """Copy tensors, one behind the other."""
    vector = torch.from_numpy(into)
    for piece, place in _pieces(tensors):
        vector[place].copy_(piece)
        if _pause(place):
            yield


@torch.no_grad()
def sum_gradients(gradients: GroupGradients, shares: Sequence[tuple[int, float]], into: Vector) -> Work[None]:
    """The gradients of groups, each times its share; zeros without any. The groups are over."""
    vector = torch.from_numpy(into)
    for piece, place in _pieces([vector]):
        piece.zero_()
        if _pause(place):
            yield
    for group, share in shares:
        for piece, place in _pieces(gradients.take(group)):
            vector[place].add_(piece.to(vector.device), alpha=share)
            if _pause(place):
                yield


@torch.no_grad()
def set_gradient(
    gradients: GroupGradients, parameters: Sequence[torch.Tensor], group: int, vector: Vector
) -> Work[None]:
    """Make a vector the gradient of a group, which has none. The vector's memory is taken over where it can be."""
    start = 0
    for parameter in parameters:
        place = slice(start, start + parameter.numel())
        values = torch.from_numpy(vector[place]).view(parameter.shape).to(parameter.device)
        gradients.add(group, parameter, values)
        start = place.stop
        if _pause(place):
            yield


@torch.no_grad()
def average(
    weights: Sequence[torch.Tensor], snapshot: Vector, total: Vector, nodes: int, *, in_place: bool
) -> Work[None]:
    """Move float32 weights by what separates the mean of all nodes from this node's snapshot.

    Steps since the snapshot are kept; a weight that has not changed since becomes the mean to the last bit. `in_place`: in
    the weights; otherwise the new ones take the place of the total.
    """
    own, sums = torch.from_numpy(snapshot), torch.from_numpy(total)
    for weight, place in _pieces(weights):
        before, mean = own[place].to(weight.device), sums[place].to(weight.device) / nodes
        moved = torch.where(weight == before, mean, weight + (mean - before))
        (weight if in_place else sums[place]).copy_(moved)
        if _pause(place):
            yield


@torch.no_grad()
def write(vector: Vector, tensors: Sequence[torch.Tensor]) -> None:
    """Copy a vector into tensors, one behind the other."""
    source, start = torch.from_numpy(vector), 0
    for tensor in tensors:
        tensor.copy_(source[start : start + tensor.numel()].view(tensor.shape))
        start += tensor.numel()


def _pieces(tensors: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, slice]]:
    """Flat views of tensors, no longer than a piece, each with its place in the vector."""
    start = 0
    for tensor in tensors:
        for piece in torch.split(tensor.detach().view(-1), PIECE):
            yield piece, slice(start, start + piece.numel())
            start += piece.numel()


def _pause(place: slice) -> bool:
    """Whether a piece's worth of elements is done with this place."""
    return bool(place.stop // PIECE > place.start // PIECE)
