"""Wake a rank of the same host that sleeps: MPI has no receive that waits without spinning.

A ring is one byte in a datagram socket beside the message. It carries nothing and may get lost: the sleeper looks for
mail on its own every so often, as it must for mail from other hosts.
"""

from __future__ import annotations

import contextlib
import secrets
import select
import socket
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI


class Doorbell:
    """One rank's bell, and the way to those of its neighbours on this host."""

    def __init__(self, token: str, rank: int, neighbours: Set[int]) -> None:
        # A leading zero byte: an abstract name, which needs no file and is gone with the process (Linux).
        self._names = {other: f"\0lemix-{token}-{other}" for other in neighbours if other != rank}
        self._own = f"\0lemix-{token}-{rank}"
        self._watched: list[int] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(self._own)

    def ring(self, rank: int) -> None:
        """Wake a rank if it sleeps on this host. One that has left, or has rings enough, needs none."""
        name = self._names.get(rank)
        if name is not None:
            self._ring(name)

    def wake(self) -> None:
        """Wake this very rank, from another of its threads."""
        self._ring(self._own)

    def watch(self, files: Sequence[int]) -> None:
        """These descriptors end a sleep, too, when there is something to read from them."""
        self._watched = list(files)

    def _ring(self, name: str) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            self._socket.sendto(b"\1", name)

    def wait(self, seconds: float) -> None:
        """Sleep until someone rings, at most this long."""
        ready = select.select([self._socket.fileno(), *self._watched], [], [], seconds)[0]
        if self._socket.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                while True:
                    self._socket.recv(1)

    def close(self) -> None:
        self._socket.close()


def hang_doorbell(comm: MPI.Comm, host: MPI.Comm) -> Doorbell:
    """This rank's doorbell. Collective over the ranks of `host`, all on one machine."""
    token = host.bcast(secrets.token_hex(8))
    neighbours = set(host.allgather(comm.Get_rank()))
    bell = Doorbell(token, comm.Get_rank(), neighbours)
    host.Barrier()
    return bell
