"""The training state of a stage on its way into host memory and back, by Hugging Face's names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from lemix_hpc.checkpoints.host_memory import HostMemory
from lemix_hpc.checkpoints.stage_state import FIRST_MOMENT, SECOND_MOMENT, SavedState, StageState, Tensor
from lemix_hpc.engines.protocol import Work
from lemix_hpc.engines.torch.module import StageModule
from lemix_hpc.engines.torch.optimizer import StageOptimizer

_PIECE = {"cpu": 1 << 18, "cuda": 1 << 22}
"""Elements that are copied in one go: a fraction of a millisecond, and well above what starting a piece costs."""


class HostCopies:
    """Copies of a stage's state. Their memory is kept from one to the next: 12 bytes for each weight."""

    def __init__(self, module: StageModule) -> None:
        self._module = module
        self._piece = _PIECE[module.device.type]
        self._memory: HostMemory | None = None
        self._buffers: dict[str, Tensor] = {}

    @torch.no_grad()
    def take(self, optimizer: StageOptimizer) -> Work[StageState]:
        """Copy what is there now, in short pieces; until the end nothing of it may change."""
        since_stop = 0
        named = list(_named(self._module, optimizer))
        if not self._buffers:
            self._allocate({name: tuple(values.shape) for name, values in named})
        for name, values in named:
            flat, buffer = values.reshape(-1), torch.from_numpy(self._buffers[name]).view(-1)
            for start in range(0, flat.numel(), self._piece):
                buffer[start : start + self._piece].copy_(flat[start : start + self._piece])
                since_stop += min(self._piece, flat.numel() - start)
                if since_stop >= self._piece:
                    since_stop = 0
                    yield
        dtype = str(next(self._module.parameters()).dtype).removeprefix("torch.")
        return StageState(self._buffers, optimizer.updates, optimizer.schedule, dtype, self._memory)

    def _allocate(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """A GPU copies into pinned memory, which no other process can have, and its host has processors to spare."""
        if self._module.device.type == "cuda":
            for name, shape in shapes.items():
                self._buffers[name] = torch.empty(shape, dtype=torch.float32, pin_memory=True).numpy()
            return
        self._memory = HostMemory(4 * sum(map(math.prod, shapes.values())))
        values, start = np.frombuffer(self._memory.view, np.float32), 0
        for name, shape in shapes.items():
            end = start + math.prod(shape)
            self._buffers[name], start = values[start:end].reshape(shape), end


@torch.no_grad()
def restore(module: StageModule, optimizer: StageOptimizer, saved: SavedState) -> None:
    """Go on from a saved state, tensor by tensor. Raises UserError if it is of another model, or cannot be read."""
    for name, values in _named(module, optimizer, all_tied=True):
        values.copy_(torch.from_numpy(saved.read(name, tuple(values.shape))))
    optimizer.go_on_from(saved.updates, saved.schedule)


def _named(
    module: StageModule, optimizer: StageOptimizer, *, all_tied: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """Views of all tensors of the state. Of a tied embedding the first stage has the same to the last bit as the last one,
    which is left out there unless `all_tied`."""
    shared = module.shared_embedding if module.last and not all_tied else None
    states = zip(module.named_parameters(), optimizer.master(), optimizer.moments(), strict=True)
    for (name, parameter), weight, (first, second) in states:
        if parameter is shared:
            continue
        for prefix, flat in (("", weight), (FIRST_MOMENT, first), (SECOND_MOMENT, second)):
            for part, values in module.saved_parts(name, flat.view(parameter.shape)):
                yield prefix + part, values
