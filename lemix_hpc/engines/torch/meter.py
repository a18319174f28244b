"""Measuring work on a GPU by its own events, its allocator's counters, and what its driver says is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from lemix_hpc.engines.meter import DeviceMemoryError, finish
from lemix_hpc.engines.protocol import Work

T = TypeVar("T")


class CudaMeter:
    """Implements `lemix_hpc.engines.meter.Meter`. Times start when the GPU is idle and end when it has done all of the work."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._others = 0

    def time(self, work: Work[T]) -> tuple[T, float]:
        return self._timed(lambda: finish(work))

    @contextmanager
    def bounded(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(str(error)) from error

    def reset_peak(self) -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        self._others = self._outside()

    def peak(self) -> int:
        """What the allocator has taken from the device at most, in part by fragments, and what is outside of it: the context,
        captured graphs, buffers of libraries, and other processes on this GPU."""
        return torch.cuda.max_memory_reserved(self._device) + max(self._others, self._outside())

    def _outside(self) -> int:
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free - torch.cuda.memory_reserved(self._device)

    def copy_times(self, nbytes: int) -> dict[str, float]:
        host = torch.ones(nbytes, dtype=torch.uint8, pin_memory=True)
        device = torch.ones(nbytes, dtype=torch.uint8, device=self._device)
        return {
            "host to device": self._timed(lambda: device.copy_(host, non_blocking=True))[1],
            "device to host": self._timed(lambda: host.copy_(device, non_blocking=True))[1],
        }

    def _timed(self, work: Callable[[], T]) -> tuple[T, float]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        with torch.cuda.device(self._device):
            torch.cuda.synchronize()
            start.record()
            result = work()
            end.record()
            end.synchronize()
        return result, start.elapsed_time(end) / 1e3
