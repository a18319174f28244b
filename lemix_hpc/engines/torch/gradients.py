"""Gradients summed in float32, group by group, so that the backwards of several groups may overlap."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils import get_total_norm


class GroupGradients:
    """The gradient sums of the groups that have not stepped yet."""

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        self._parameters = list(parameters)
        self._sums: dict[int, dict[torch.Tensor, torch.Tensor]] = {}

    def add(self, group: int, parameter: torch.Tensor, grad: torch.Tensor) -> None:
        """Add a gradient; its memory may be taken over."""
        sums = self._sums.setdefault(group, {})
        if parameter in sums:
            sums[parameter] += grad
        else:
            sums[parameter] = grad.float().contiguous()

    def of(self, group: int, parameter: torch.Tensor) -> torch.Tensor:
        """The sum of one parameter; zeros, kept from then on, if no backward used it."""
        sums = self._sums.setdefault(group, {})
        if parameter not in sums:
            sums[parameter] = torch.zeros_like(parameter, dtype=torch.float32)
        return sums[parameter]

    def square_norm(self, group: int, without: torch.Tensor | None = None) -> float:
        """Squared 2-norm of all the group's gradients, but that of the parameter `without`."""
        grads = [grad for parameter, grad in self._sums.get(group, {}).items() if parameter is not without]
        return float(get_total_norm(grads)) ** 2

    def take(self, group: int) -> list[torch.Tensor]:
        """The group's gradients in the order of the parameters; the group is over."""
        grads = [self.of(group, parameter) for parameter in self._parameters]
        del self._sums[group]
        return grads

    def drop(self, group: int) -> None:
        """Free what there is of a group's gradients."""
        self._sums.pop(group, None)
