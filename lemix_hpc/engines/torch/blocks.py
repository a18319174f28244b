"""How a micro-batch goes through one block of a stage: a decoder layer, or half of one."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from lemix_hpc.engines.torch.attention import attend_within_rows
from lemix_hpc.engines.torch.module import StageModule

RunBlock = Callable[[int, torch.Tensor | None], torch.Tensor]
"""The output of the stage's block with this index, from its input (rows, length, hidden), or from the stage's tokens where that
is None. With gradients enabled the output has a graph."""


def by_kernels(module: StageModule, entry: torch.Tensor) -> RunBlock:
    """One launch after the other. `entry`: what came into the stage, tokens (rows, length) on the first one."""
    positions = torch.arange(entry.shape[1], device=entry.device).unsqueeze(0)
    arguments = functools.cache(functools.partial(module.layer_arguments, positions))

    def run(index: int, start: torch.Tensor | None) -> torch.Tensor:
        hidden = module.embed(entry, positions) if start is None else start
        return module.run_block(module.blocks[index], hidden, arguments(hidden.dtype), attend_within_rows)

    return run
