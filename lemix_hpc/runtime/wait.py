"""How a loop waits when it has nothing to do: spin where every rank has a core, else back off to short sleeps."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mpi4py import MPI

FIRST_SLEEP_S = 20e-6
LONGEST_SLEEP_S = 400e-6


class Waiter:
    """Call `idle` on every turn that found nothing and `reset` on every one that did."""

    def __init__(self, *, spin: bool) -> None:
        self._spin = spin
        self._sleep = FIRST_SLEEP_S

    def reset(self) -> None:
        self._sleep = FIRST_SLEEP_S

    def idle(self, at_most: float = LONGEST_SLEEP_S) -> None:
        """Give way for a moment, but no longer than `at_most` seconds."""
        if self._spin or at_most <= 0:
            return
        time.sleep(min(self._sleep, at_most))
        self._sleep = min(2 * self._sleep, LONGEST_SLEEP_S)


def ranks_outnumber_cores(comm: MPI.Comm) -> bool:
    """Whether more ranks share this host than it has cores for them. Collective over the ranks of the host."""
    from mpi4py import MPI

    host = comm.Split_type(MPI.COMM_TYPE_SHARED)
    ranks = host.Get_size()
    host.Free()
    return ranks > len(os.sched_getaffinity(0))


def make_waiter(comm: MPI.Comm, choice: Literal["auto", "spin", "backoff"]) -> Waiter:
    """The waiter for a recipe's `engine.wait`. Collective over the ranks of the host."""
    crowded = ranks_outnumber_cores(comm)
    return Waiter(spin=choice == "spin" or (choice == "auto" and not crowded))
