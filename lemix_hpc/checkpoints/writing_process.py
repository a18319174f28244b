"""The process that writes states to files: it takes orders, one a line, and answers each with a line.

It has little to import, and no more processor time than others leave.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path

import msgspec

from lemix_hpc.checkpoints import tensor_file
from lemix_hpc.checkpoints.host_memory import mapped
from lemix_hpc.checkpoints.tensor_file import TensorSpec, Written

NICENESS = 10
"""About a tenth of a processor that others want, too: with less, saves would not end on a host that is always busy."""


class Order(msgspec.Struct, frozen=True):
    """Write a file of these tensors, which are one after another in the memory."""

    path: str
    specs: list[TensorSpec]
    metadata: dict[str, str]


class Failed(msgspec.Struct, frozen=True, array_like=True):
    """The answer, if it is not what was written: the OSError."""

    errno: int
    message: str
    path: str


def main() -> None:
    """`python -m lemix_hpc.checkpoints.writing_process DESCRIPTOR NBYTES`: until nobody can ask for anything any more."""
    os.nice(NICENESS)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        # They are for the run, which then waits for the file.
        signal.signal(number, signal.SIG_IGN)
    memory = mapped(*map(int, sys.argv[1:]))
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(msgspec.json.encode(_obey(msgspec.json.decode(line, type=Order), memory)) + b"\n")
        sys.stdout.buffer.flush()


def _obey(order: Order, memory: memoryview) -> Written | Failed:
    start = 0

    def data(spec: TensorSpec) -> memoryview:
        nonlocal start
        start += spec.nbytes
        return memory[start - spec.nbytes : start]

    try:
        return tensor_file.write(Path(order.path), order.specs, data, order.metadata)
    except OSError as error:
        return Failed(error.errno or errno.EIO, error.strerror or str(error), str(error.filename or order.path))


if __name__ == "__main__":
    main()
