"""One time for all ranks: seconds since the start of the run, on the scheduler rank's monotonic clock."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI

ROUNDS = 20
TAG = 64


class RunClock:
    """`offset` turns this rank's monotonic clock into the scheduler rank's; `start` sets the zero of the run."""

    def __init__(self, offset: float) -> None:
        self._offset = offset
        self._start_time = 0.0

    def monotonic(self) -> float:
        """Now, on the scheduler rank's monotonic clock."""
        return time.monotonic() + self._offset

    def start(self, start_time: float) -> None:
        self._start_time = start_time

    def now(self) -> float:
        """Seconds since the start of the run; negative before it."""
        return time.monotonic() + self._offset - self._start_time


def synchronise(comm: MPI.Comm) -> RunClock:
    """Measure this rank's offset to rank 0: the router with the shortest round trip says it best (Cristian, 1989).

    Collective. Its error is at most half that round trip, some tens of microseconds.
    """
    rank = comm.Get_rank()
    if rank == 0:
        for other in range(1, comm.Get_size()):
            for _ in range(ROUNDS):
                _receive(comm, other)
                comm.send(time.monotonic(), other, TAG)
        return RunClock(0.0)
    best = (float("inf"), 0.0)
    for _ in range(ROUNDS):
        sent = time.monotonic()
        comm.send(None, 0, TAG)
        theirs = _receive(comm, 0)
        back = time.monotonic()
        best = min(best, (back - sent, theirs - (sent + back) / 2))
    return RunClock(best[1])


def _receive(comm: MPI.Comm, source: int) -> float:
    """A receive that leaves the core to others while it waits: blocking ones spin."""
    while not comm.iprobe(source, TAG):
        time.sleep(0)
    theirs: float = comm.recv(source=source, tag=TAG)
    return theirs
