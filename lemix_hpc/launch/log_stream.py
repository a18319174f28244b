"""What a process says into its log, also while the disk that has the log is full: nobody may die of that."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

MOST_KEPT = 1 << 16
"""Bytes that are kept for a disk that does not take them; what comes later is left out."""


class LogStream(io.RawIOBase):
    """Writes to a file descriptor. What the disk does not take is tried again with the next write."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._kept = bytearray()
        self._left_out = 0

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, content: Buffer, /) -> int:
        said = bytes(content)
        if len(self._kept) + len(said) <= MOST_KEPT:
            self._kept += said
        else:
            self._left_out += len(said)
        self._try()
        return len(said)

    def _try(self) -> None:
        try:
            while self._kept:
                del self._kept[: os.write(self._descriptor, self._kept)]
                if not self._kept and self._left_out:
                    self._kept += f"[{self._left_out} bytes of this log are missing: the disk was full]\n".encode()
                    self._left_out = 0
        except OSError:
            return  # there is nowhere to say so: the next write tries again


def keep_on_writing() -> None:
    """From now on no print of this process fails because its log cannot be written."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        getattr(sys, name).flush()
        buffer = io.BufferedWriter(LogStream(descriptor))
        stream = io.TextIOWrapper(buffer, encoding="utf-8", errors="backslashreplace", line_buffering=True)
        setattr(sys, name, stream)
