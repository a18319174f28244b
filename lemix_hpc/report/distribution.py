"""Means and percentiles of any number of values in bounded memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

EXACT = 1 << 20
"""So many values are kept as they are. Of more, older ones are rounded to 11 bits behind the first: percentiles are within
0.03 %, and there are no more than some 10,000 different ones."""
_LOST_BITS = 41


class Distribution:
    """Of the values that were added, None left out."""

    def __init__(self, values: Iterable[float | None] = (), exact: int = EXACT) -> None:
        self._exact = exact
        self._new = array("d")
        self._rounded = np.empty(0)
        self._counts = np.empty(0, np.int64)
        self._sum = 0.0
        for value in values:
            self.add(value)

    def add(self, value: float | None) -> None:
        if value is not None:
            self._new.append(value)
            if len(self._new) > self._exact:
                self._round()

    def figures(self, percentiles: Sequence[int], scale: float = 1.0) -> dict[str, float | None]:
        """Mean and percentiles (linear interpolation) times `scale`; all None if there are no values."""
        names = ["mean", *(f"p{q}" for q in percentiles)]
        if not self._new and not self._counts.size:
            return dict.fromkeys(names)
        if not self._counts.size:
            values = np.frombuffer(self._new) * scale
            figures = [values.mean(), *np.percentile(values, percentiles)]
        else:
            self._round()
            mean = self._sum / int(self._counts.sum())
            figures = [scale * mean, *(scale * self._percentile(q) for q in percentiles)]
        return {name: float(figure) for name, figure in zip(names, figures, strict=True)}

    def __len__(self) -> int:
        return len(self._new) + int(self._counts.sum())

    def at(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """The values that these shares of all values, 0..1, are at most (linear interpolation); empty if there are none."""
        if not self._counts.size:
            return np.asarray(np.quantile(np.frombuffer(self._new), shares), float) if self._new else np.empty(0)
        self._round()
        return np.array([self._percentile(100 * share) for share in shares])

    def _round(self) -> None:
        values: NDArray[np.float64] = np.array(self._new)
        self._new = array("d")
        self._sum += float(values.sum())
        half, mask = np.int64(1 << (_LOST_BITS - 1)), np.int64(-(1 << _LOST_BITS))
        rounded = ((values.view(np.int64) + half) & mask).view(np.float64)
        joined = np.concatenate([self._rounded, rounded])
        counts = np.concatenate([self._counts, np.ones(rounded.size, np.int64)])
        self._rounded, places = np.unique(joined, return_inverse=True)
        self._counts = np.bincount(places, counts, self._rounded.size).astype(np.int64)

    def _percentile(self, q: float) -> float:
        upto = np.cumsum(self._counts)
        place = q / 100 * (int(upto[-1]) - 1)
        low, high = (self._rounded[np.searchsorted(upto, at, "right")] for at in (np.floor(place), np.ceil(place)))
        return float(low + (high - low) * (place % 1.0))
