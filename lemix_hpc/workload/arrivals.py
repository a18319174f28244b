"""Arrival processes. All give sorted times in seconds from 0 in blocks, each of shape (n,), which end before `duration_s` or
after `requests`, whichever is first. Rates are in requests per second.

For one seed a shorter run is the beginning of a longer one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from lemix_hpc.config.serving_section import GeneratedSource

_BLOCK = 1024
Times = Iterator[NDArray[np.float64]]


def arrival_times(source: GeneratedSource, rng: np.random.Generator) -> Times:
    """Arrivals of a generated workload, seconds. There may be none if the duration is short for the rate."""
    duration = math.inf if source.duration_s is None else source.duration_s
    match source.kind:
        case "poisson":
            return poisson(source.rate, duration, source.requests, rng)
        case "bursty":
            return bursty(source.rate, source.on_s, source.off_s, duration, source.requests, rng)
        case "constant":
            return constant(source.rate, duration, source.requests)
        case "daily":
            return daily(source.rate, source.swing, source.period_s, duration, source.requests, rng)


def poisson(rate: float, duration_s: float, requests: int | None, rng: np.random.Generator) -> Times:
    """A Poisson process: independent exponential gaps of mean 1 / rate, the first from time 0."""
    return _ended(_poisson(rate, rng), duration_s, requests)


def bursty(
    rate: float, on_s: float, off_s: float, duration_s: float, requests: int | None, rng: np.random.Generator
) -> Times:
    """An on/off process: Poisson at `rate` for `on_s` seconds, nothing for `off_s`, and again, starting on."""
    phases = (np.divmod(block, on_s) for block in _poisson(rate, rng))
    return _ended((cycle * (on_s + off_s) + phase for cycle, phase in phases), duration_s, requests)


def daily(
    rate: float, swing: float, period_s: float, duration_s: float, requests: int | None, rng: np.random.Generator
) -> Times:
    """A Poisson process of rate * (1 - swing * cos(2 pi t / period_s)): lowest at the start, `rate` in the mean.

    Drawn by thinning (Lewis and Shedler, Naval Research Logistics Quarterly 26, 1979).
    """
    highest = rate * (1.0 + swing)
    return _ended(
        (
            block[rng.random(_BLOCK) * highest < rate * (1.0 - swing * np.cos(2.0 * np.pi * block / period_s))]
            for block in _poisson(highest, rng)
        ),
        duration_s,
        requests,
    )


def constant(rate: float, duration_s: float, requests: int | None) -> Times:
    """Evenly spaced arrivals, the first at 0."""
    return _ended(_even(rate), duration_s, requests)


def _poisson(rate: float, rng: np.random.Generator) -> Times:
    """Without an end."""
    last = 0.0
    while True:
        block = last + np.cumsum(rng.exponential(1 / rate, size=_BLOCK))
        yield block
        last = float(block[-1])


def _even(rate: float) -> Times:
    """Without an end."""
    first = 0
    while True:
        yield np.arange(first, first + _BLOCK).astype(np.float64) / rate
        first += _BLOCK


def _ended(blocks: Iterable[NDArray[np.float64]], duration_s: float, requests: int | None) -> Times:
    left = requests
    for block in blocks:
        times = block[block < duration_s][:left]
        if times.size:
            yield times
        left = None if left is None else left - times.size
        if left == 0 or (block.size and block[-1] >= duration_s):
            return
