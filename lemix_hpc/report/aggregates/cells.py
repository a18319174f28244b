"""What happened over time, and samples of it, in a size that does not depend on how long it went on."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

FINEST_S = 2.0**-10
_PER_OCTAVE = 32


class TimeCells(Generic[K]):
    """Sums of several things, by `K`, in cells of time: from 0 on, all of one width [s], which is `finest` and doubles whenever
    there would be more than `most` cells."""

    def __init__(self, most: int, finest: float = FINEST_S) -> None:
        self._most = most
        self._sums: dict[K, list[float]] = {}
        self._used = 0
        self.width = finest

    def count(self, key: K, at: float, amount: float = 1.0) -> None:
        """Something happened at this time; before 0 counts as at 0."""
        cell = self._cell(at)
        self._of(key)[cell] += amount

    def cover(self, key: K, start: float, end: float) -> None:
        """Something went on from `start` to `end`: each cell gets its seconds of it."""
        last, first = self._cell(end), self._cell(start)
        sums = self._of(key)
        if first == last:
            sums[first] += end - start
            return
        sums[first] += (first + 1) * self.width - start
        for cell in range(first + 1, last):
            sums[cell] += self.width
        sums[last] += end - last * self.width

    @property
    def edges(self) -> NDArray[np.float64]:
        """Where the cells begin that were used, and where the last of them ends [s]."""
        return np.arange(self._used + 1, dtype=float) * self.width

    def names(self) -> list[K]:
        """In the order in which they came."""
        return list(self._sums)

    def sums(self, key: K) -> NDArray[np.float64]:
        """For each cell that was used."""
        return np.array(self._sums.get(key, [0.0] * self._most)[: self._used])

    def _of(self, key: K) -> list[float]:
        sums = self._sums.get(key)
        if sums is None:
            sums = self._sums[key] = [0.0] * self._most
        return sums

    def _cell(self, at: float) -> int:
        cell = max(0, int(at / self.width))
        while cell >= self._most:
            self._fold()
            cell = int(at / self.width)
        if cell >= self._used:
            self._used = cell + 1
        return cell

    def _fold(self) -> None:
        self.width *= 2.0
        self._used = -(-self._used // 2)
        for sums in self._sums.values():
            pairs = [sums[cell] + sums[cell + 1] for cell in range(0, self._most - 1, 2)]
            pairs += sums[self._most - 1 :] if self._most % 2 else []
            sums[:] = pairs + [0.0] * (self._most - len(pairs))


class Thinned(Generic[T]):
    """Every k-th of the things that come; k doubles whenever there would be more than `most` of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._came = 0
        self.every = 1
        self.kept: list[T] = []

    def add(self, thing: T) -> None:
        if self._came % self.every == 0:
            self.kept.append(thing)
            if len(self.kept) > self._most:
                del self.kept[1::2]
                self.every *= 2
        self._came += 1


def bucket(value: float) -> int:
    """The number of a value above 0 on a scale of steps of 2 %; smaller ones, and 0, are as a microsecond."""
    return math.floor(_PER_OCTAVE * math.log2(max(value, 1e-6)))


def of_bucket(number: int) -> float:
    """The middle of a bucket: its values are within 1.1 % of it."""
    return float(2.0 ** ((number + 0.5) / _PER_OCTAVE))


def percentile_of_buckets(counts: NDArray[np.float64], buckets: list[int], q: float) -> float | None:
    """Of values by `buckets` in rising order; None if there are none."""
    upto = np.cumsum(counts)
    if not upto.size or upto[-1] <= 0:
        return None
    return of_bucket(buckets[int(np.searchsorted(upto, q / 100 * upto[-1]))])
