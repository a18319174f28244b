"""Where a micro-batch has a loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch

IGNORED = -100
"""As a label: no loss is taken here."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Where a loss is taken: flat positions into (rows, length - 1), and the tokens that are to be predicted there."""

    positions: torch.Tensor
    targets: torch.Tensor

    @classmethod
    def of(cls, labels: torch.Tensor, device: torch.device) -> Labels:
        """`labels` (rows, length) on the host, so that finding the labelled positions never waits for the device."""
        targets = labels[:, 1:].flatten()
        positions = (targets != IGNORED).nonzero().squeeze(1)
        return cls(positions.to(device), targets[positions].to(device))

    def in_rows(self, length: int) -> torch.Tensor:
        """The same positions in (rows, length), flat."""
        return self.positions + self.positions // max(length - 1, 1)
