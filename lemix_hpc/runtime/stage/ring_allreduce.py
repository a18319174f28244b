"""The sum of one vector from each of N nodes, on every node, without a call that waits for anybody.

A node is fed the parts that arrive and gives the parts to send to the next one; there is no I/O here. The vector is cut into
parts. A part goes once along the nodes, each adding its own values in the order of the ring, and the total goes round once
more. So every element is summed in the same order whatever way the vector is cut, and all nodes end with the very same bits.
Parts follow each other closely: every link carries at most twice the vector, close to the 2 (N - 1) / N of the best there is.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from lemix_hpc.engines.protocol import Vector

PART = 1 << 18
"""Elements of a part, 1 MiB: a tenth of a millisecond to add, and well above what a message costs."""


@dataclass(frozen=True, slots=True)
class RingChunk:
    """RingChunk `index` of the vector of a round, after `hops` nodes: sums of theirs at first, after all of them the total."""

    round: int
    index: int
    hops: int
    values: Vector


class Ring:
    """The node at `position` of `size`. Rounds are numbered from 0, and one is open at a time.

    A node that is in a round already may send parts to one that is not: they are kept until it begins.
    """

    def __init__(self, position: int, size: int, *, part: int = PART) -> None:
        self._position = position
        self._size = size
        self._part = part
        self._round = -1
        self._own: Vector | None = None
        self._total = np.empty(0, dtype=np.float32)
        self._missing = 0
        self._todo: deque[RingChunk] = deque()
        self._early: list[RingChunk] = []

    @property
    def open(self) -> bool:
        """Whether a round has begun whose total has not been taken."""
        return self._own is not None

    def begin(self, own: Vector) -> None:
        """Open the next round with this node's vector, as long as everybody's. It must stay as it is until the round ends.

        Raises ValueError while a round is open.
        """
        if self.open:
            raise ValueError(f"round {self._round} has not ended")
        self._round += 1
        self._own, self._total = own, np.empty_like(own)
        # An empty vector still takes a part: the end of a round says that everybody has begun it.
        self._missing = max(1, -(-own.size // self._part))
        if self._position == 0:
            self._todo.extend(
                RingChunk(self._round, index, 0, own[self._place(index)]) for index in range(self._missing)
            )
        self._todo.extend(part for part in self._early if part.round == self._round)
        self._early = [part for part in self._early if part.round != self._round]

    def feed(self, part: RingChunk) -> None:
        """A part has come from the node before. Its values may be written to from here on."""
        (self._todo if self.open and part.round == self._round else self._early).append(part)

    @property
    def ready(self) -> bool:
        """Whether there is a piece of work."""
        return bool(self._todo)

    def advance(self) -> RingChunk | None:
        """Do one piece of work, at most one addition of a part; returns what goes to the next node, if anything does.

        What is returned must be sent before its values change; nothing here writes to them any more.
        """
        part, own = self._todo.popleft(), self._own
        assert own is not None, "there is work only in a round"
        place = self._place(part.index)
        if 0 < part.hops < self._size:
            np.add(part.values, own[place], out=part.values)
        if part.hops >= self._size - 1:
            self._total[place] = part.values
            self._missing -= 1
        if part.hops == 2 * (self._size - 1):
            return None
        return RingChunk(part.round, part.index, part.hops + 1, part.values)

    @property
    def complete(self) -> bool:
        """Whether the total of the open round is there."""
        return self.open and not self._missing

    def take(self) -> Vector:
        """The total of the open round, which ends."""
        if not self.complete:
            raise ValueError(f"round {self._round} has no total yet")
        self._own = None
        return self._total

    def _place(self, index: int) -> slice:
        return slice(index * self._part, (index + 1) * self._part)
