"""Files that are whole or not there, whatever happens while they are written, and disks that take nothing for a while."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

LITTLE = 1 << 16
RETRY_S = 1.0
PASSING = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT))
"""Errors of a disk that may be over when somebody has made room, or when the file server answers again."""


def replace(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Write a file so that a reader sees the old content or the new, never a part; with `sync` also after a power cut.

    Raises OSError.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    if sync:
        sync_directory(path.parent)


def overwrite(path: Path, content: bytes) -> None:
    """Write over the bytes of a JSON file that is there: on a full disk there is no room for a second one.

    What is left of a longer one becomes white space. A reader at the same moment may see a part. Raises OSError.
    """
    with path.open("r+b", buffering=0) as file:
        file.write(content.ljust(os.fstat(file.fileno()).st_size))


def is_full(path: Path) -> bool:
    """Whether the file system there has no room for another small file."""
    try:
        free = os.statvfs(path)
    except OSError:
        return False
    return free.f_bavail * free.f_frsize < LITTLE or (free.f_files > 0 and free.f_favail == 0)


def sync_directory(path: Path) -> None:
    """Make what was created and renamed in a directory last. Raises OSError."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def patiently(do: Callable[[], T], timeout_s: float, over: Callable[[], bool] = lambda: False) -> T:
    """Do something, again and again while the disk does not take it, until `timeout_s` have passed or it is `over`.

    Raises OSError then, and any other error at once.
    """
    end, told = time.monotonic() + timeout_s, False
    while True:
        try:
            return do()
        except OSError as error:
            if error.errno not in PASSING or time.monotonic() >= end or over():
                raise
            if not told:
                print(f"waiting for the disk: {error}", flush=True)
            told = True
        time.sleep(RETRY_S)
