"""Forward and backward of a training micro-batch in pieces of one block: a decoder layer, or half of one.

The graph is cut between blocks: a block's input is a detached tensor that shares its producer's storage. Each piece then
has a backward of its own, and the work can stop between any two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from lemix_hpc.engines.protocol import Work
from lemix_hpc.engines.torch.attention import attend_within_rows
from lemix_hpc.engines.torch.module import StageModule

IGNORED = -100

Collect = Callable[[torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class Segment:
    """One piece's graph, from its detached input (None where that is tokens) to its output."""

    input: torch.Tensor | None
    output: torch.Tensor
    parameters: list[torch.Tensor]


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


def forward(
    module: StageModule, entry: torch.Tensor, labels: Labels | None, segments: list[Segment] | None
) -> Work[torch.Tensor]:
    """Run the stage on `entry`: tokens (rows, length) on the first stage, else hidden (rows, length, hidden).

    Returns the hidden state, or with labels the mean loss. The graph is appended to `segments`, or not kept without it.
    """
    keep = segments is not None
    positions = torch.arange(entry.shape[1], device=entry.device).unsqueeze(0)
    arguments = None
    hidden = entry
    for index, block in enumerate(module.blocks):
        parameters: list[torch.Tensor] = list(block.parameters())
        with torch.set_grad_enabled(keep):
            if index == 0 and module.first:
                start = None
                hidden = module.embed(entry, positions)
                parameters += module.embedding_parameters
            else:
                start = hidden = hidden.detach().requires_grad_(keep)
            if arguments is None:
                arguments = module.layer_arguments(positions, hidden.dtype)
            hidden = module.run_block(block, hidden, arguments, attend_within_rows)
        if segments is not None:
            segments.append(Segment(start, hidden, parameters))
        yield
    if labels is None:
        return hidden.detach()
    with torch.set_grad_enabled(keep):
        start = hidden.detach().requires_grad_(keep)
        loss = _mean_loss(module, start, labels)
    if segments is not None:
        segments.append(Segment(start, loss, module.head_parameters))
    return loss.detach()


def _mean_loss(module: StageModule, hidden: torch.Tensor, labels: Labels) -> torch.Tensor:
    """Mean NLL of the labelled tokens, 0 if there is none. Logits are made for labelled positions only."""
    predicting = hidden[:, :-1].flatten(0, 1)[labels.positions]
    logits = module.logits(predicting).float()
    return cross_entropy(logits, labels.targets, reduction="sum") / max(len(labels.targets), 1)


def backward(segments: list[Segment], grad: torch.Tensor, collect: Collect) -> Work[torch.Tensor | None]:
    """Backpropagate `grad`, the gradient of the last segment's output, and free the graph on the way.

    Hands every parameter's gradient to `collect` (more than once for a parameter that several segments use) and returns
    the gradient of the first segment's input, None where that is tokens.
    """
    flowing: torch.Tensor | None = grad
    while segments:
        flowing = _backward_segment(segments.pop(), flowing, collect)
        if segments:
            yield
    return flowing


def _backward_segment(segment: Segment, grad: torch.Tensor | None, collect: Collect) -> torch.Tensor | None:
    # `autograd.grad` instead of `backward`: the gradients come out as values and may belong to any group, whatever else
    # is under way.
    inputs = list(segment.parameters)
    if segment.input is not None:
        inputs.append(segment.input)
    grads = torch.autograd.grad(segment.output, inputs, grad)
    for parameter, parameter_grad in zip(segment.parameters, grads, strict=False):
        collect(parameter, parameter_grad)
    return None if segment.input is None else grads[-1]
