"""When something is due on each of many stages: a tournament of the earliest, changed in logarithmic time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lemix_hpc.policy.by_reference import by_reference
from lemix_hpc.policy.jit import inlined


@by_reference
class Timers(NamedTuple):
    """`due`: (leaves,), seconds or inf; `winner`: (2 * leaves,), the earliest below each inner node, the root at 1."""

    due: NDArray[np.float64]
    winner: NDArray[np.int64]


def make_timers(count: int) -> Timers:
    """So many timers, none of them set."""
    leaves = 1 << max(0, count - 1).bit_length()
    winner = np.zeros(2 * leaves, dtype=np.int64)
    winner[leaves:] = np.arange(leaves)
    for inner in range(leaves - 1, 0, -1):
        winner[inner] = winner[2 * inner]
    return Timers(np.full(leaves, np.inf), winner)


@inlined
def set_timer(timers: Timers, index: int, time: float) -> None:
    """Due at `time` [s], or never (inf)."""
    due, winner = timers.due, timers.winner
    due[index] = time
    inner = (index + due.size) >> 1
    while inner >= 1:
        left, right = winner[2 * inner], winner[2 * inner + 1]
        winner[inner] = right if due[right] < due[left] else left
        inner >>= 1


@inlined
def earliest(timers: Timers) -> int:
    """The timer that is due first; the lowest number of those that are due at the same time."""
    first: int = timers.winner[1]
    return first
