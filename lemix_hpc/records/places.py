"""Which requests of a workload are over, by their places in it: few stretches, since requests come in order."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

import msgspec


class Places(msgspec.Struct):
    """Places from 0, in stretches that do not touch: each from one of `starts` up to, not with, one of `ends`."""

    starts: list[int] = []
    ends: list[int] = []

    def add(self, place: int) -> None:
        after = bisect_right(self.starts, place)
        if after and place < self.ends[after - 1]:
            return
        extends = after > 0 and self.ends[after - 1] == place
        precedes = after < len(self.starts) and self.starts[after] == place + 1
        if extends and precedes:
            self.ends[after - 1] = self.ends.pop(after)
            del self.starts[after]
        elif extends:
            self.ends[after - 1] += 1
        elif precedes:
            self.starts[after] = place
        else:
            self.starts.insert(after, place)
            self.ends.insert(after, place + 1)

    def with_all(self, places: Iterable[int]) -> Places:
        """These and others."""
        both = Places(self.starts.copy(), self.ends.copy())
        for place in places:
            both.add(place)
        return both

    def __contains__(self, place: int) -> bool:
        after = bisect_right(self.starts, place)
        return after > 0 and place < self.ends[after - 1]

    def __len__(self) -> int:
        return sum(self.ends) - sum(self.starts)

    @property
    def first_gap(self) -> int:
        """The first place that is not among them."""
        return self.ends[0] if self.starts and self.starts[0] == 0 else 0
