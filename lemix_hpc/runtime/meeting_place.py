"""Where the ranks of a node meet, with the processes of engines that have some."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lemix_hpc.engines.host_files import own_directory

if TYPE_CHECKING:
    from mpi4py import MPI


@contextlib.contextmanager
def meeting_place(comm: MPI.Comm, node: int, *, is_leader: bool) -> Iterator[Path]:
    """A directory on the node's host that only this user may enter, gone when the leader leaves. Collective over `comm`."""
    ranks = comm.Split(node, 0 if is_leader else 1)
    if is_leader:
        with own_directory() as directory:
            yield ranks.bcast(directory)
    else:
        yield ranks.bcast(None)
