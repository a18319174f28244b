"""Gradients summed in float32, group by group, so that the backwards of several groups may overlap."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lemix_hpc.engines.protocol import Work

CHUNK = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Elements of one piece of work on gradients that are only read, by the kind of device: less than a millisecond of memory
traffic, and well above what starting a piece costs."""


class GroupGradients:
    """The gradient sums of the groups that have not stepped yet."""

    def __init__(self, parameters: Sequence[torch.Tensor], *, borrowed: bool = False) -> None:
        """`borrowed`: the memory of gradients that come is used again by whoever they come from, and not taken over."""
        self._parameters = list(parameters)
        self._borrowed = borrowed
        self._sums: dict[int, dict[torch.Tensor, torch.Tensor]] = {}

    def add(self, group: int, parameter: torch.Tensor, grad: torch.Tensor) -> None:
        """Add a gradient; its memory may be taken over unless it is borrowed."""
        sums = self._sums.setdefault(group, {})
        if parameter in sums:
            sums[parameter] += grad
        else:
            own = grad.float().contiguous()
            sums[parameter] = own.clone() if self._borrowed and own.data_ptr() == grad.data_ptr() else own

    def of(self, group: int, parameter: torch.Tensor) -> torch.Tensor:
        """The sum of one parameter; zeros, kept from then on, if no backward used it."""
        sums = self._sums.setdefault(group, {})
        if parameter not in sums:
            sums[parameter] = torch.zeros_like(parameter, dtype=torch.float32)
        return sums[parameter]

    @torch.no_grad()
    def norm(self, group: int, without: torch.Tensor | None = None) -> Work[torch.Tensor]:
        """2-norm of all the group's gradients, but that of the parameter `without`: one element, where the gradients are.

        It is torch's `get_total_norm` to the last bit, which is the norm of the norms of tensors: so no tensor is cut.
        """
        norms: list[torch.Tensor] = []
        piece: list[torch.Tensor] = []
        for parameter, grad in list(self._sums.get(group, {}).items()):
            if parameter is without:
                continue
            piece.append(grad)
            if sum(part.numel() for part in piece) >= CHUNK[grad.device.type]:
                norms.extend(torch._foreach_norm(piece))
                piece = []
                yield
        if piece:
            norms.extend(torch._foreach_norm(piece))
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())

    def add_to(self, group: int, parameter: torch.Tensor, other: torch.Tensor) -> Work[None]:
        """Add a float32 gradient of the parameter's shape to its sum."""
        own, chunk = self.of(group, parameter).view(-1), CHUNK[other.device.type]
        added = other.reshape(-1)
        for start in range(0, own.numel(), chunk):
            own[start : start + chunk] += added[start : start + chunk]
            yield

    @torch.no_grad()
    def combine(self, shares: Sequence[tuple[int, float]], into: int) -> Work[None]:
        """Make `into` the sum of groups, each times its share; zeros without any. The groups are over."""
        taken = [(self.take(group), share) for group, share in shares]
        grads = taken[0][0] if taken else self.all_of(into)
        for others, share in taken:
            done = 0
            for own, other in zip(grads, others, strict=True):
                chunk = CHUNK[own.device.type]
                pieces, added_to_them = torch.split(own.view(-1), chunk), torch.split(other.view(-1), chunk)
                for piece, added in zip(pieces, added_to_them, strict=True):
                    if others is grads:
                        piece.mul_(share)
                    else:
                        piece.add_(added, alpha=share)
                    done += piece.numel()
                    if done >= chunk:
                        done = 0
                        yield
        self._sums[into] = dict(zip(self._parameters, grads, strict=True))

    def all_of(self, group: int) -> list[torch.Tensor]:
        """The sums of all parameters, in their order."""
        return [self.of(group, parameter) for parameter in self._parameters]

    def take(self, group: int) -> list[torch.Tensor]:
        """The group's gradients in the order of the parameters; the group is over."""
        grads = self.all_of(group)
        del self._sums[group]
        return grads

    def drop(self, group: int) -> None:
        """Free what there is of a group's gradients."""
        self._sums.pop(group, None)
