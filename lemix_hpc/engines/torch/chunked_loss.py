"""The loss over a large vocabulary, chunk by chunk: the logits of all tokens are never there at the same time.

Each chunk's gradient is taken at once, so that nothing of its size is left for the backward. It is taken for the share that
the micro-batch has in its group, and so is what autograd would give, but for the order of the sum over tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from lemix_hpc.engines.protocol import Work
from lemix_hpc.engines.torch.labels import Labels
from lemix_hpc.engines.torch.module import StageModule


@dataclass(frozen=True, slots=True)
class HeadGradients:
    """Of a loss that was taken in chunks: of the stage's last hidden state, and, in float32, of what the head uses."""

    hidden: torch.Tensor
    parameters: Sequence[torch.Tensor]
    of_parameters: Sequence[torch.Tensor]


def summed_loss(module: StageModule, predicting: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """NLL of the targets (tokens) from the hidden states before them (tokens, hidden)."""
    return cross_entropy(module.logits(predicting).float(), targets, reduction="sum")


def loss_by_chunks(
    module: StageModule, hidden: torch.Tensor, labels: Labels, share: float | None, chunk: int
) -> Work[tuple[torch.Tensor, HeadGradients | None]]:
    """The mean loss of the labelled tokens, and the gradients of `share` times it, or none without a share.

    `hidden`: (rows, length, hidden), without a graph.
    """
    places, count, parameters = labels.in_rows(hidden.shape[1]), len(labels.targets), module.head_parameters
    total = torch.zeros((), device=hidden.device)
    flowing = torch.zeros_like(hidden) if share is not None else None
    sums: list[torch.Tensor] = []
    for start in range(0, count, chunk):
        if start:
            yield
        part = slice(start, start + chunk)
        predicting = hidden.reshape(-1, hidden.shape[2])[places[part]].requires_grad_(share is not None)
        with torch.set_grad_enabled(share is not None):
            loss = summed_loss(module, predicting, labels.targets[part]) / count
        total += loss.detach()
        if flowing is not None:
            scale = torch.full_like(loss, share)  # type: ignore[arg-type]
            own, *of_parameters = torch.autograd.grad(loss, [predicting, *parameters], scale)
            flowing.view(-1, hidden.shape[2])[places[part]] = own
            _add(sums, of_parameters)
    return total, None if flowing is None else HeadGradients(flowing, parameters, sums)


def _add(sums: list[torch.Tensor], grads: Sequence[torch.Tensor]) -> None:
    """In float32, however coarse the weights are: there may be many chunks."""
    if not sums:
        sums.extend(grad.float() for grad in grads)
        return
    for total, grad in zip(sums, grads, strict=True):
        total.add_(grad)
