"""Wake a rank of the same host that sleeps: MPI has no receive that waits without spinning.

A ring is one byte in a datagram socket beside the message. It says which inbox that is for, and may get lost: the sleeper looks
for mail on its own every so often, as it must for mail from other hosts.
"""

from __future__ import annotations

import contextlib
import secrets
import select
import socket
from collections import Counter
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI

NOBODY = 0
"""No inbox: a ring that only wakes."""


class Doorbell:
    """One rank's bell, and the way to those of its neighbours on this host.

    `remote`: there are ranks on other hosts, who cannot ring. `rings`: how many for each inbox, as far as was looked.
    """

    def __init__(self, token: str, rank: int, neighbours: Set[int], *, remote: bool = False) -> None:
        self.remote = remote
        self.rings: Counter[int] = Counter()
        self._rank = rank
        # A leading zero byte: an abstract name, which needs no file and is gone with the process (Linux).
        self._names = {other: f"\0lemix-{token}-{other}" for other in neighbours if other != rank}
        self._own = f"\0lemix-{token}-{rank}"
        self._watched: list[int] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(self._own)

    def ring(self, rank: int, inbox: int) -> None:
        """Wake a rank if it sleeps on this host. One that has left, or has rings enough, needs none; this one is awake."""
        name = self._names.get(rank)
        if name is not None:
            self._ring(name, inbox)
        elif rank == self._rank:
            self.rings[inbox] += 1

    def wake(self) -> None:
        """Wake this very rank, from another of its threads."""
        self._ring(self._own, NOBODY)

    def watch(self, files: Sequence[int]) -> None:
        """These descriptors end a sleep, too, when there is something to read from them."""
        self._watched = list(files)

    def _ring(self, name: str, inbox: int) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            self._socket.sendto(bytes((inbox,)), name)

    def wait(self, seconds: float) -> None:
        """Sleep until someone rings, at most this long."""
        select.select([self._socket.fileno(), *self._watched], [], [], seconds)
        self.look()

    def look(self) -> None:
        """Take in the rings so far: whoever rang has sent before what it rang for."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.rings[self._socket.recv(1)[0]] += 1

    def close(self) -> None:
        self._socket.close()


def hang_doorbell(comm: MPI.Comm, host: MPI.Comm) -> Doorbell:
    """This rank's doorbell. Collective over the ranks of `host`, all on one machine."""
    token = host.bcast(secrets.token_hex(8))
    neighbours = set(host.allgather(comm.Get_rank()))
    bell = Doorbell(token, comm.Get_rank(), neighbours, remote=len(neighbours) < comm.Get_size())
    host.Barrier()
    return bell
