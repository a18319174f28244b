"""A file of lines whose writer goes on while the disk takes nothing."""

from __future__ import annotations

import os
import threading
from pathlib import Path

BUFFER = 1 << 16
"""Bytes that are collected before they are written."""


class LineFile:
    """Replaces `path`, or adds to its lines where it `goes_on`. Lines that the disk does not take are kept, and tried again at
    the next `flush`.

    Of what is kept no more than `most` bytes are: later lines are left out, and counted. None: all are kept. Any thread may
    write, flush and sync. Raises OSError if the file cannot be made.
    """

    def __init__(self, path: Path, most: int | None = None, *, goes_on: bool = False) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if goes_on else os.O_TRUNC), 0o644)
        self._most = most
        self._kept = bytearray()
        self._lock = threading.Lock()
        self._error: OSError | None = None
        self.closed = False
        self.left_out = 0
        """How many lines."""

    @property
    def trouble(self) -> str | None:
        """Why the disk does not take more, None while it does."""
        error = self._error
        return None if error is None else error.strerror or str(error)

    def write(self, line: bytes) -> None:
        """Append a line, which ends with a line end."""
        with self._lock:
            if self._error is not None and self._most is not None and len(self._kept) + len(line) > self._most:
                self.left_out += 1
                return
            self._kept += line
            if self._error is None and len(self._kept) >= BUFFER:
                self._flush()

    def flush(self) -> bool:
        """Hand all lines to the system; False if it does not take them."""
        with self._lock:
            return self._flush()

    def sync(self) -> None:
        """Wait until all lines so far are on the disk. Raises OSError."""
        with self._lock:
            if self.closed:
                return
            if not self._flush():
                assert self._error is not None, "it says why"
                raise self._error
            file = os.dup(self._file)
        try:
            os.fdatasync(file)
        finally:
            os.close(file)

    def close(self) -> None:
        """Close the file. What the disk has not taken by now is gone, and so are lines that are written later."""
        with self._lock:
            if not self.closed:
                self._flush()
                os.close(self._file)
            self.closed = True

    def _flush(self) -> bool:
        if self.closed:
            return True
        try:
            while self._kept:
                del self._kept[: os.write(self._file, self._kept)]
        except OSError as error:
            self._error = error
            return False
        self._error = None
        return True
