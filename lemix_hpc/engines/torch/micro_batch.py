"""Forward and backward of a training micro-batch in pieces of one block: a decoder layer, or half of one.

The graph is cut between blocks: a block's input is a detached tensor that shares its producer's storage. Each piece then
has a backward of its own, and the work can stop between any two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lemix_hpc.engines.protocol import Work
from lemix_hpc.engines.torch.attention import attend_within_rows
from lemix_hpc.engines.torch.chunked_loss import HeadGradients, loss_by_chunks, summed_loss
from lemix_hpc.engines.torch.labels import Labels
from lemix_hpc.engines.torch.loss_chunks import chunk_tokens
from lemix_hpc.engines.torch.module import StageModule

Collect = Callable[[torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class Segment:
    """One piece's graph, from its detached input (None where that is tokens) to its output."""

    input: torch.Tensor | None
    output: torch.Tensor
    parameters: list[torch.Tensor]


def forward(
    module: StageModule,
    entry: torch.Tensor,
    labels: Labels | None,
    segments: list[Segment | HeadGradients] | None,
    share: float = 1.0,
) -> Work[torch.Tensor]:
    """Run the stage on `entry`: tokens (rows, length) on the first stage, else hidden (rows, length, hidden).

    Returns the hidden state, or with labels the mean loss. The graph is appended to `segments`, or not kept without it.
    `share`: what the loss is multiplied with where its gradient is taken at once.
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
    chunk = chunk_tokens(module.vocabulary)
    if len(labels.targets) <= chunk:
        return _loss(module, hidden, labels, segments)
    loss, gradients = yield from loss_by_chunks(module, hidden.detach(), labels, share if keep else None, chunk)
    if segments is not None and gradients is not None:
        segments.append(gradients)
    return loss


def _loss(
    module: StageModule, hidden: torch.Tensor, labels: Labels, segments: list[Segment | HeadGradients] | None
) -> torch.Tensor:
    """Mean NLL of the labelled tokens, 0 if there is none. Logits are made for labelled positions only."""
    keep = segments is not None
    with torch.set_grad_enabled(keep):
        start = hidden.detach().requires_grad_(keep)
        predicting = start.flatten(0, 1)[labels.in_rows(start.shape[1])]
        loss = summed_loss(module, predicting, labels.targets) / max(len(labels.targets), 1)
    if segments is not None:
        segments.append(Segment(start, loss, module.head_parameters))
    return loss.detach()


def backward(
    segments: list[Segment | HeadGradients], grad: torch.Tensor, collect: Collect
) -> Work[torch.Tensor | None]:
    """Backpropagate `grad`, the gradient of the last segment's output, and free the graph on the way. Where the gradient of the
    loss was taken at once, it goes on from that.

    Hands every parameter's gradient to `collect` (more than once for a parameter that several segments use) and returns
    the gradient of the first segment's input, None where that is tokens.
    """
    flowing: torch.Tensor | None = grad
    while segments:
        segment = segments.pop()
        if isinstance(segment, HeadGradients):
            flowing = segment.hidden
            for parameter, value in zip(segment.parameters, segment.of_parameters, strict=True):
                collect(parameter, value)
        else:
            flowing = _backward_segment(segment, flowing, collect)
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
