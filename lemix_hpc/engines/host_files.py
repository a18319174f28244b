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

from lemix_hpc.config.errors import UserError

if TYPE_CHECKING:
    from mpi4py import MPI

PREFIX = "lemix-node-"
SHARED_MEMORY = Path("/dev/shm")
USUAL_PLACE = Path("/tmp")
LONGEST_PLACE = 50
"""Characters, of the 107 that the kernel takes for a socket's name: behind them are an attempt's directory, a node's in that,
and a name of vLLM's."""
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
    """A directory that only this user may enter, by default for temporary files and sockets. Raises OSError, and UserError as
    `place_for_sockets`."""
    made = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=parent or place_for_sockets()))
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


def place_for_sockets() -> Path:
    """Where temporary files go, or `USUAL_PLACE` where that has too long a name for the sockets in them.

    Raises UserError if neither will do.
    """
    given = Path(tempfile.gettempdir())
    for place in (given, USUAL_PLACE):
        if len(os.fsencode(place)) <= LONGEST_PLACE and os.access(place, os.W_OK | os.X_OK):
            return place
    raise UserError(
        f"TMPDIR: {given} has more than the {LONGEST_PLACE} characters that leave room for the names of Unix sockets, and "
        f"{USUAL_PLACE} cannot be written; set TMPDIR to a directory with a shorter name"
    )


def remove_abandoned() -> None:
    """Remove such directories whose owners were killed."""
    places = {Path(tempfile.gettempdir()), USUAL_PLACE, SHARED_MEMORY}
    for path in [path for place in places for path in place.glob(f"{PREFIX}*")]:
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
