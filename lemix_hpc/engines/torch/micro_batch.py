"""Forward and backward of a training micro-batch in pieces of one block: a decoder layer, or half of one.

The graph is cut between blocks: a block's input is a detached tensor that shares its producer's storage. Each piece then
has a backward of its own, and the work can stop between any two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from lemix_hpc.engines.protocol import Work
from lemix_hpc.engines.torch.blocks import RunBlock, by_kernels
from lemix_hpc.engines.torch.chunked_loss import HeadGradients, loss_by_chunks, summed_loss
from lemix_hpc.engines.torch.labels import Labels
from lemix_hpc.engines.torch.loss_chunks import chunk_tokens
from lemix_hpc.engines.torch.module import StageModule

Collect = Callable[[torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class Segment:
    """One piece's graph, from its detached input (None where that is tokens) to its output, None where that is to be computed
    again. `run` makes the output from the input."""

    input: torch.Tensor | None
    output: torch.Tensor | None
    parameters: list[torch.Tensor]
    run: Callable[[], torch.Tensor]

    def made_again(self) -> Segment:
        """With a new graph, in place of one that was used in part or not kept. Under the same weights it is the same."""
        with torch.enable_grad():
            return replace(self, output=self.run())


def forward(
    module: StageModule,
    entry: torch.Tensor,
    labels: Labels | None,
    segments: list[Segment | HeadGradients] | None,
    share: float = 1.0,
    *,
    inputs_only: bool = False,
    run_block: RunBlock | None = None,
) -> Work[torch.Tensor]:
    """Run the stage on `entry`: tokens (rows, length) on the first stage, else hidden (rows, length, hidden).

    Returns the hidden state, or with labels the mean loss. The graph is appended to `segments`, or not kept without it; with
    `inputs_only` that of the loss alone, and of each block what it starts from. `share`: what the loss is multiplied with where
    its gradient is taken at once. `run_block`: how blocks are run, by default by their kernels.
    """
    keep = segments is not None
    run_block = run_block or by_kernels(module, entry)
    hidden = entry
    for index, block in enumerate(module.blocks):
        parameters: list[torch.Tensor] = list(block.parameters())
        if index == 0 and module.first:
            start = None
            parameters += module.embedding_parameters
        else:
            start = hidden.detach().requires_grad_(keep)
        run = functools.partial(run_block, index, start)
        with torch.set_grad_enabled(keep and not inputs_only):
            hidden = run()
        if segments is not None:
            segments.append(Segment(start, None if inputs_only else hidden, parameters, run))
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
    start = hidden.detach().requires_grad_(keep)
    run = functools.partial(_whole_loss, module, start, labels)
    with torch.set_grad_enabled(keep):
        loss = run()
    if segments is not None:
        segments.append(Segment(start, loss, module.head_parameters, run))
    return loss.detach()


def _whole_loss(module: StageModule, hidden: torch.Tensor, labels: Labels) -> torch.Tensor:
    predicting = hidden.flatten(0, 1)[labels.in_rows(hidden.shape[1])]
    return summed_loss(module, predicting, labels.targets) / max(len(labels.targets), 1)


def backward(segments: list[Segment | HeadGradients], course: Backward, collect: Collect) -> Work[torch.Tensor | None]:
    """Backpropagate the gradient of the last segment's output, and free the graph on the way. What was not kept of it is made
    again, in a piece of its own. Where the gradient of the loss was taken at once, it goes on from that.

    Hands every parameter's gradient to `collect` (more than once for a parameter that several segments use) and returns
    the gradient of the first segment's input, None where that is tokens. After an error for want of memory the same call goes
    on from there.
    """
    course.settle(collect)
    while segments:
        segment = segments[-1]
        if isinstance(segment, HeadGradients):
            pairs = list(zip(segment.parameters, segment.of_parameters, strict=True))
            course.flowing, course.uncollected = segment.hidden, pairs
            segments.pop()
        else:
            if segment.output is None:
                segments[-1] = segment.made_again()
                yield
            course.through(segments)
        course.settle(collect)
        if segments:
            yield
    return course.flowing


@dataclass(slots=True)
class Backward:
    """How far a backward has come: the gradient that goes on (`flowing`), and those of the last piece that are not summed yet.
    `damaged`: autograd has given up in the middle of the next piece's graph, which cannot be used again."""

    flowing: torch.Tensor | None
    uncollected: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    damaged: bool = False

    def through(self, segments: list[Segment | HeadGradients]) -> None:
        """Through the last segment, which is gone then."""
        segment = segments[-1]
        assert isinstance(segment, Segment), "others have their gradients"
        if self.damaged:
            segments[-1] = segment = segment.made_again()
            self.damaged = False
        # `autograd.grad` instead of `backward`: the gradients come out as values and may belong to any group, whatever else
        # is under way.
        inputs = list(segment.parameters)
        if segment.input is not None:
            inputs.append(segment.input)
        assert segment.output is not None, "made again before"
        try:
            grads = torch.autograd.grad(segment.output, inputs, self.flowing)
        except torch.OutOfMemoryError:
            self.damaged = True
            raise
        segments.pop()
        self.flowing = None if segment.input is None else grads[-1]
        self.uncollected = list(zip(segment.parameters, grads, strict=False))

    def settle(self, collect: Collect) -> None:
        """Hand over what is not yet: each gradient once, whatever fails in between."""
        while self.uncollected:
            collect(*self.uncollected[-1])
            self.uncollected.pop()
