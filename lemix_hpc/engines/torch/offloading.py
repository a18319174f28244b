"""What a micro-batch keeps between forward and backward, and its way to host memory and back.

Tensors keep their shapes and their places in the graph: only the memory behind them is given away and got again. So it does not
matter what autograd has saved, of which there is no list, and what the pieces of a pass hand to one another.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch

from lemix_hpc.engines.protocol import Transfer, Work
from lemix_hpc.engines.torch.training_queue import Mark, TrainingQueue

LOOK_AGAIN_S = 1e-3
"""When somebody who sleeps looks again whether a copy has ended that is still under way."""


class KeptMemory:
    """The memory that a graph keeps. Not that of parameters, which stay, nor any that came from elsewhere (see `add`)."""

    def __init__(self) -> None:
        self.storages: dict[int, torch.UntypedStorage] = {}
        self.on_host: list[tuple[torch.UntypedStorage, torch.Tensor]] = []

    def noting(self, work: Work[torch.Tensor]) -> Work[torch.Tensor]:
        """The same work; what autograd saves in it is noted."""
        try:
            while True:
                with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept):
                    try:
                        next(work)
                    except StopIteration as end:
                        result: torch.Tensor = end.value
                        return result
                yield
        finally:
            work.close()

    def add(self, tensor: torch.Tensor) -> None:
        """What MPI has received into memory of its own cannot be given away, and is left out."""
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.resizable():
            self.storages[storage.data_ptr()] = storage

    def leave_out(self, tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            self.storages.pop(tensor.untyped_storage().data_ptr(), None)

    @property
    def nbytes(self) -> int:
        """On the device now."""
        return sum(storage.nbytes() for storage in self.storages.values())

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        kept = tensor.detach()  # an output that holds itself would never be freed
        self.add(kept)
        return kept


class Mover(Protocol):
    """Moves what micro-batches keep between the device and the host."""

    def to_host(self, kept: KeptMemory) -> Transfer: ...

    def to_device(self, kept: KeptMemory) -> Transfer: ...


class OnOneHost:
    """On a CPU both ends are memory of the host: the budget of the device is what such a copy leaves."""

    def to_host(self, kept: KeptMemory) -> Transfer:
        kept.on_host = [(storage, _bytes(storage).clone()) for storage in kept.storages.values()]
        for storage, _ in kept.on_host:
            storage.resize_(0)
        return Transfer(lambda: 0.0)

    def to_device(self, kept: KeptMemory) -> Transfer:
        for storage, copy in kept.on_host:
            storage.resize_(copy.numel())
            _bytes(storage).copy_(copy)
        kept.on_host = []
        return Transfer(lambda: 0.0)


class BesideCompute:
    """On a GPU copies have a stream of their own. Memory is given away and got again among what training launches, whose memory
    it is."""

    def __init__(self, device: torch.device, queue: TrainingQueue) -> None:
        self._device = device
        self._queue = queue
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def to_host(self, kept: KeptMemory) -> Transfer:
        pairs = [
            (storage, torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=True))
            for storage in kept.storages.values()
        ]
        copied = self._copy([(_bytes(storage), copy) for storage, copy in pairs])

        def remaining() -> float:
            if kept.on_host:
                return 0.0
            if not copied.query():
                return LOOK_AGAIN_S
            with self._queue.inside():
                for storage, _ in pairs:
                    storage.resize_(0)
            kept.on_host = pairs
            return 0.0

        return Transfer(remaining)

    def to_device(self, kept: KeptMemory) -> Transfer:
        pairs, kept.on_host = kept.on_host, []
        with self._queue.inside():
            for storage, copy in pairs:
                storage.resize_(copy.numel())
        copied = self._copy([(copy, _bytes(storage)) for storage, copy in pairs])
        # The copies on the host stay until then.
        return Transfer(lambda: 0.0 if copied.query() and pairs is not None else LOOK_AGAIN_S)

    def _copy(self, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> Mark:
        """Copy from the first to the second of each, behind all that training has launched so far."""
        with self._queue.inside():
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for source, target in pairs:
                target.copy_(source, non_blocking=True)
        mark: Mark = self._stream.record_event()
        return mark


def mover_for(device: torch.device, queue: TrainingQueue) -> Mover:
    return BesideCompute(device, queue) if device.type == "cuda" else OnOneHost()


def _bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
