"""What ranks and engines keep on their host, outside of the run's directory: little of it stays, however they end.

Shared memory and sockets lose their names as soon as all who share them have them open. A directory is locked while its owner
lives; one whose owner was killed is removed by the next run that starts there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI

PREFIX = "lemix-node-"
SHARED_MEMORY = Path("/dev/shm")
_SEGMENT = r"(?:sm|vader)_segment\."
"""How Open MPI's files of shared memory begin."""


def forget_shared_memory(host: MPI.Comm) -> None:
    """Take the names of the memory that Open MPI shares on this host, which is mapped and stays so.

    Collective over `host`, the ranks of one host; called early, since until then a rank that is killed leaves its file.
    """
    # Two ranks map each other's memory when they first meet, if not before.
    host.alltoall([None] * host.Get_size())
    host.Barrier()
    _forget_mapped(_SEGMENT)


def forget_shared_by(name: str) -> None:
    """Take the names of shared memory of this process with `name` in it, once all who share it have mapped it."""
    _forget_mapped(rf"\S*{re.escape(name)}")


def forget_sockets(directory: Path) -> None:
    """Take the names of the sockets there, once all who should have connected."""
    for path in directory.iterdir():
        if path.is_socket():
            path.unlink(missing_ok=True)


def _forget_mapped(pattern: str) -> None:
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    for path in set(re.findall(rf"\s(/\S*/{pattern}\S*)$", maps, re.MULTILINE)):
        Path(path).unlink(missing_ok=True)


@contextlib.contextmanager
def own_directory(parent: Path | None = None) -> Iterator[Path]:
    """A directory that only this user may enter, by default for temporary files. Raises OSError."""
    made = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=parent))
    lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
    directory = made.with_name(made.name[1:])
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        # Only now is it one of those that others look at.
        made.rename(directory)
        yield directory
    finally:
        os.close(lock)
        shutil.rmtree(directory, ignore_errors=True)


def remove_abandoned() -> None:
    """Remove such directories whose owners were killed."""
    for path in (*Path(tempfile.gettempdir()).glob(f"{PREFIX}*"), *SHARED_MEMORY.glob(f"{PREFIX}*")):
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            if _is_ours(path.lstat()):
                _remove_if_free(path)


def _is_ours(found: os.stat_result) -> bool:
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _remove_if_free(path: Path) -> None:
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for memory in SHARED_MEMORY.glob(f"*{path.name}*"):
            if memory.is_file():
                memory.unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)
