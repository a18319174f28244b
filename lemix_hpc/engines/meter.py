"""Measuring a stage's work on its device: time, peak memory, and how fast memory is copied."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from lemix_hpc.engines.protocol import Work

T = TypeVar("T")


class DeviceMemoryError(Exception):
    """Work did not fit into the device's memory."""


class Meter(Protocol):
    """Looks at the device of one stage. Times are in seconds, memory in bytes."""

    def time(self, work: Work[T]) -> tuple[T, float]:
        """Do the work to its end."""
        ...

    def bounded(self) -> AbstractContextManager[None]:
        """In it, what does not fit into the device's memory raises DeviceMemoryError."""
        ...

    def reset_peak(self) -> None:
        """Forget the peak so far, and give memory back that is cached but not used."""
        ...

    def peak(self) -> int:
        """The most memory in use since `reset_peak`."""
        ...

    def copy_times(self, nbytes: int) -> dict[str, float]:
        """How long one copy of so many bytes takes, by direction."""
        ...


def finish(work: Work[T]) -> T:
    """Do all pieces of some work."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            value: T = end.value
            return value


class HostMeter:
    """Work on this process's own cores: the monotonic clock, and the process's resident memory."""

    # What PyTorch's allocator for the CPU says, in a plain RuntimeError.
    _ALLOCATION_FAILED = "DefaultCPUAllocator: can't allocate memory"

    def time(self, work: Work[T]) -> tuple[T, float]:
        start = time.perf_counter()
        result = finish(work)
        return result, time.perf_counter() - start

    @contextmanager
    def bounded(self) -> Iterator[None]:
        try:
            yield
        except MemoryError as error:
            raise DeviceMemoryError(str(error)) from error
        except RuntimeError as error:
            if self._ALLOCATION_FAILED in str(error):
                raise DeviceMemoryError(str(error)) from error
            raise

    def reset_peak(self) -> None:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
        if trim is not None:
            trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts over

    def peak(self) -> int:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024

    def copy_times(self, nbytes: int) -> dict[str, float]:
        source, target = np.ones(nbytes, dtype=np.uint8), np.ones(nbytes, dtype=np.uint8)
        start = time.perf_counter()
        np.copyto(target, source)
        return {"host to host": time.perf_counter() - start}
