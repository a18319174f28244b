"""What torch says when a device has no memory left, in the words of the engines."""

from __future__ import annotations

from typing import TypeVar

import torch

from lemix_hpc.engines.meter import DeviceMemoryError
from lemix_hpc.engines.protocol import Work

T = TypeVar("T")


def may_be_repeated(work: Work[T]) -> Work[T]:
    """The same work. Raises DeviceMemoryError if it does not fit, and leaves nothing of the piece that failed in the device's
    memory."""
    try:
        return (yield from work)
    except torch.OutOfMemoryError as error:
        told = str(error)
    # Here nothing refers to its tensors any more.
    torch.cuda.empty_cache()  # nothing on a CPU
    raise DeviceMemoryError(told)
