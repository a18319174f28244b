"""The blocks of a stage as CUDA graphs, for micro-batches of one shape: one launch for each instead of dozens.

A graph works on memory of its own, which it writes over whenever it runs. So one micro-batch at a time has the graphs, from
when a graph keeps what its backward needs until that is through. Others run by kernels meanwhile, as does every other shape.
Each block has its own memory: nothing that it holds is touched by what runs in between, in whatever order blocks are run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.training_section import Training
from lemix_hpc.engines.torch.attention import attend_within_rows
from lemix_hpc.engines.torch.blocks import RunBlock, by_kernels
from lemix_hpc.engines.torch.module import StageModule

Run = Callable[[torch.Tensor], torch.Tensor]
Capture = Callable[["Piece", torch.Tensor], Run]
"""Makes a graph of a piece for inputs like a sample. Its output and all gradients that come out of its backward are the graph's
own memory, and good until it runs again."""


class CapturedBlocks:
    """What a stage asks for how its micro-batches are to run, and tells when they are through."""

    def __init__(self, module: StageModule, rows: int, length: int, capture: Capture) -> None:
        """Captures all blocks for micro-batches of this shape. The weights must stay where they are from here on."""
        self._module = module
        self._shape = rows, length
        self._holder: int | None = None
        like = next(module.parameters())
        positions = torch.arange(length, device=module.device).unsqueeze(0)
        arguments = module.layer_arguments(positions, like.dtype)
        self._positions = positions
        self._graphs = [
            capture(
                Piece(module, block, arguments).eval(),
                torch.zeros(rows, length, module.width, dtype=like.dtype, device=module.device, requires_grad=True),
            )
            for block in module.blocks
        ]

    def holds(self, micro_batch: int) -> bool:
        """Whether the graphs keep what this micro-batch needs for its backward."""
        return self._holder == micro_batch

    def release(self, micro_batch: int) -> None:
        """The micro-batch needs nothing more of the graphs."""
        if self._holder == micro_batch:
            self._holder = None

    def runner(self, micro_batch: int, entry: torch.Tensor) -> RunBlock:
        """How to run the blocks for this micro-batch. Whether by a graph is decided each time."""
        kernels = by_kernels(self._module, entry)
        if tuple(entry.shape[:2]) != self._shape:
            return kernels

        def run(index: int, start: torch.Tensor | None) -> torch.Tensor:
            keep = torch.is_grad_enabled()
            if self._holder is not None and not (keep and self._holder == micro_batch):
                return kernels(index, start)
            if keep:
                self._holder = micro_batch
            hidden = self._module.embed(entry, self._positions) if start is None else start
            output = self._graphs[index](hidden)
            # Whoever does not hold the graphs keeps nothing in their memory.
            return output if keep else output.clone()

        return run


class Piece(nn.Module):
    """A block as a function of its input alone. Its parameters are the block's."""

    def __init__(self, module: StageModule, block: nn.Module, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.block = block
        # In a function, since the stage is no part of its block.
        self._run: Run = lambda hidden: module.run_block(block, hidden, arguments, attend_within_rows)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._run(hidden)


def cuda_graph(piece: Piece, sample: torch.Tensor) -> Run:
    """Forward and backward of a piece, captured by torch."""
    graphed: Any = torch.cuda.make_graphed_callables(piece, (sample,))

    def run(hidden: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = graphed(hidden)
        return output

    return run


def captured_blocks(module: StageModule, training: Training | None) -> CapturedBlocks | None:
    """Those that the recipe asks for; captured now. Raises UserError where this device captures none."""
    if training is None or not training.cuda_graphs:
        return None
    if module.device.type != "cuda":
        raise UserError(
            f"training.cuda_graphs: needs a GPU, and this stage is on {module.device.type}; set it to false, or leave it out"
        )
    return CapturedBlocks(module, training.micro_batch_size, training.sequence_length, cuda_graph)
