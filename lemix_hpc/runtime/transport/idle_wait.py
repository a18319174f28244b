"""How a loop waits when it has nothing to do: spin where every rank has a core, else sleep until there is mail."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from lemix_hpc.runtime.transport.doorbell import Doorbell

if TYPE_CHECKING:
    from mpi4py import MPI

FIRST_SLEEP_S = 20e-6
BETWEEN_LOOKS_S = 400e-6
ALONE_ON_HOST_S = 20e-3


class Waiter:
    """Call `idle` on every turn that found nothing and `reset` on every one that did.

    A rank whose host has all the others sleeps until the bell rings. Where mail may come from other hosts, which cannot ring
    it, sleeps are short, and double up to `BETWEEN_LOOKS_S`. `crowded`: the host has fewer cores than ranks.
    """

    def __init__(self, bell: Doorbell, *, spin: bool, crowded: bool = False) -> None:
        self.crowded = crowded
        self._bell = bell
        self._spin = spin
        self._first, self._longest = (FIRST_SLEEP_S, BETWEEN_LOOKS_S) if bell.remote else (ALONE_ON_HOST_S,) * 2
        self._sleep = self._first
        self._on_turn: Callable[[], None] = lambda: None

    def on_turn(self, call: Callable[[], None]) -> None:
        """From now on call this on every turn."""
        self._on_turn = call

    def reset(self) -> None:
        self._on_turn()
        self._sleep = self._first

    def wake(self) -> None:
        """End this rank's sleep, from any of its threads."""
        self._bell.wake()

    def idle(self, at_most: float = ALONE_ON_HOST_S, *, in_transit: bool = False) -> None:
        """Give way until the bell rings, at most `at_most` seconds; `in_transit`: MPI needs calls to move what it has."""
        self._on_turn()
        if self._spin or at_most <= 0:
            return
        longest = min(at_most, BETWEEN_LOOKS_S if in_transit else self._longest)
        self._bell.wait(min(self._sleep, longest))
        self._sleep = min(2 * self._sleep, self._longest)


def make_waiter(host: MPI.Comm, bell: Doorbell, choice: Literal["auto", "spin", "backoff"]) -> Waiter:
    """The waiter for a recipe's `engine.wait`. Collective over `host`, the ranks on this machine."""
    # Slurm may bind each rank to cores of its own: together they may have enough, though each sees few.
    cores = frozenset[int]().union(*host.allgather(os.sched_getaffinity(0)))
    crowded = host.Get_size() > len(cores)
    spin = choice == "spin" or (choice == "auto" and not crowded)
    return Waiter(bell, spin=spin, crowded=crowded)
