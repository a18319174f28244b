"""Memory that another process can read as it is, without a name that would be left behind."""

from __future__ import annotations

import mmap
import os


class HostMemory:
    """`nbytes` of zeros. They are there as long as somebody has them mapped or holds `descriptor`, which a process can be
    given when it is started. Raises OSError if there is not so much."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.descriptor = os.memfd_create("lemix-state")
        os.ftruncate(self.descriptor, nbytes)
        self.view = memoryview(mmap.mmap(self.descriptor, nbytes))


def mapped(descriptor: int, nbytes: int) -> memoryview:
    """What is in the memory behind a descriptor, to be read."""
    return memoryview(mmap.mmap(descriptor, nbytes, access=mmap.ACCESS_READ))
