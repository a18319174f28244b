"""One time for all ranks: seconds since the start of the run, on the scheduler rank's monotonic clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI

ROUNDS = 20
TAG = 64


class RunClock:
    """`offset` turns this rank's monotonic clock into the scheduler rank's; `start` sets the zero of the run.

    It never goes back: where it is found to be ahead it stands for so long.
    """

    def __init__(self, offset: float, own: Callable[[], float] = time.monotonic) -> None:
        """`own`: this rank's clock [s]."""
        self._offset = offset
        self._own = own
        self._start_time = 0.0
        self._latest = -math.inf

    def own(self) -> float:
        """Now, on this rank's own clock, which is nobody else's."""
        return self._own()

    def monotonic(self) -> float:
        """Now, on the scheduler rank's monotonic clock."""
        self._latest = max(self._latest, self._own() + self._offset)
        return self._latest

    def told(self, asked: float, theirs: float, heard: float) -> float:
        """The scheduler rank's clock showed `theirs` at some time between `asked` and `heard` of this rank's `own`.

        The offset was then between `theirs - heard` and `theirs - asked`. It moves into these bounds, and no further: what
        made a message slow is no reason to change a clock. Returns by how much it has moved [s].
        """
        before = self._offset
        self._offset = min(max(before, theirs - heard), theirs - asked)
        return self._offset - before

    def start(self, start_time: float) -> None:
        self._start_time = start_time

    def now(self) -> float:
        """Seconds since the start of the run; negative before it."""
        return self.monotonic() - self._start_time


def synchronise(comm: MPI.Comm) -> RunClock:
    """Measure this rank's offset to rank 0: the shortest of some round trips says it best (Cristian, 1989).

    Collective. Its error is at most half that round trip, some tens of microseconds. `RunClock.told` keeps it so.
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
