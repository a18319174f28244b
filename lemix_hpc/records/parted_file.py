"""A file of lines that may be written for days: it is cut into parts, and those that are full are compressed."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from lemix_hpc.records.files import sync_directory
from lemix_hpc.records.line_file import LineFile
from lemix_hpc.records.parts import Reach, compress, compressed, part, parts

PART = 64 << 20
"""Bytes of a part, about: it ends with a line."""


class PartedFile:
    """Replaces `path` and its older parts. Lines wait as in a `LineFile` while the disk does not take them.

    Where it does not let the file be cut, or a part be compressed, that is tried again later. One thread writes. Raises OSError
    if the file cannot be made.
    """

    def __init__(self, path: Path, most: int | None = None, size: int = PART) -> None:
        for old in parts(path):
            old.unlink(missing_ok=True)
            compressed(old).unlink(missing_ok=True)
        self._path = path
        self._most = most
        self._part = size
        self._file = LineFile(path, most)
        self._parts = 0
        self._written = 0
        self._lines = 0
        self._left_out = 0
        self._compression: threading.Thread | None = None

    @property
    def trouble(self) -> str | None:
        """Why the disk does not take more, None while it does."""
        return self._file.trouble

    @property
    def left_out(self) -> int:
        """How many lines."""
        return self._left_out + self._file.left_out

    @property
    def reach(self) -> Reach:
        """All lines so far."""
        return Reach(self._parts + 1, self._lines)

    def write(self, line: bytes) -> None:
        """Append a line, which ends with a line end."""
        self._file.write(line)
        self._written += len(line)
        self._lines += 1
        if self._written >= self._part and self._file.trouble is None:
            self._written = 0
            if self._file.flush():
                self._cut()

    def flush(self) -> bool:
        """Hand all lines to the system; False if it does not take them."""
        return self._file.flush()

    def sync(self) -> None:
        """Wait until all lines so far are on the disk, and older parts are compressed. Raises OSError."""
        self._file.sync()
        if self._compression is not None:
            self._compression.join()
        self._compress_all()

    def settle(self) -> None:
        """Wait until all lines so far are on the disk, and compress nothing. From any thread. Raises OSError."""
        self._file.sync()
        # What was cut off meanwhile, or before.
        for each in parts(self._path):
            with contextlib.suppress(FileNotFoundError):  # It has just been compressed, and is on the disk.
                file = os.open(each, os.O_RDONLY)
                try:
                    os.fsync(file)
                finally:
                    os.close(file)
        sync_directory(self._path.parent)

    def close(self) -> None:
        """Close the file. What the disk has not taken by now is gone."""
        self._file.close()

    def _cut(self) -> None:
        """What was written becomes a part, and a new one begins."""
        full = part(self._path, self._parts + 1)
        try:
            self._path.rename(full)
        except OSError:
            return
        try:
            new = LineFile(self._path, self._most)
        except OSError:
            full.rename(self._path)
            return
        self._left_out += self._file.left_out
        self._file.close()
        self._file = new
        self._parts += 1
        self._lines = 0
        if self._compression is None or not self._compression.is_alive():
            self._compression = threading.Thread(target=self._compress, name=f"compress {self._path.name}", daemon=True)
            self._compression.start()

    def _compress(self) -> None:
        with contextlib.suppress(OSError):  # The parts are there as they are; `sync` tries again, and says why not.
            self._compress_all()

    def _compress_all(self) -> None:
        for each in parts(self._path):
            if each.exists():
                compress(each)
