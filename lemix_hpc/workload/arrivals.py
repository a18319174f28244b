"""Arrival processes. All return sorted times in seconds from 0, shape (n,), which end before `duration_s` or after
`requests`, whichever is first. Rates are in requests per second.

For one seed a shorter run is the beginning of a longer one.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lemix_hpc.config.serving_section import GeneratedSource

_BLOCK = 1024


def arrival_times(source: GeneratedSource, rng: np.random.Generator) -> NDArray[np.float64]:
    """Arrivals of a generated workload, seconds, shape (n,). n may be 0 if the duration is short for the rate."""
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


def poisson(rate: float, duration_s: float, requests: int | None, rng: np.random.Generator) -> NDArray[np.float64]:
    """A Poisson process: independent exponential gaps of mean 1 / rate, the first from time 0."""
    blocks: list[NDArray[np.float64]] = []
    last, count = 0.0, 0
    while last < duration_s and (requests is None or count < requests):
        block = last + np.cumsum(rng.exponential(1 / rate, size=_BLOCK))
        blocks.append(block)
        last, count = float(block[-1]), count + _BLOCK
    return _ended(np.concatenate(blocks), duration_s, requests)


def bursty(
    rate: float, on_s: float, off_s: float, duration_s: float, requests: int | None, rng: np.random.Generator
) -> NDArray[np.float64]:
    """An on/off process: Poisson at `rate` for `on_s` seconds, nothing for `off_s`, and again, starting on."""
    cycles, rest = (duration_s, 0.0) if math.isinf(duration_s) else divmod(duration_s, on_s + off_s)
    busy_s = cycles * on_s + min(rest, on_s)
    cycle, phase = np.divmod(poisson(rate, busy_s, requests, rng), on_s)
    return _ended(cycle * (on_s + off_s) + phase, duration_s, requests)


def daily(
    rate: float, swing: float, period_s: float, duration_s: float, requests: int | None, rng: np.random.Generator
) -> NDArray[np.float64]:
    """A Poisson process of rate * (1 - swing * cos(2 pi t / period_s)): lowest at the start, `rate` in the mean.

    Drawn by thinning (Lewis and Shedler, Naval Research Logistics Quarterly 26, 1979).
    """
    highest = rate * (1.0 + swing)
    blocks: list[NDArray[np.float64]] = []
    last, count = 0.0, 0
    while last < duration_s and (requests is None or count < requests):
        block = last + np.cumsum(rng.exponential(1 / highest, size=_BLOCK))
        kept = rng.random(_BLOCK) * highest < rate * (1.0 - swing * np.cos(2.0 * np.pi * block / period_s))
        blocks.append(block[kept])
        last, count = float(block[-1]), count + int(kept.sum())
    return _ended(np.concatenate(blocks), duration_s, requests)


def constant(rate: float, duration_s: float, requests: int | None) -> NDArray[np.float64]:
    """Evenly spaced arrivals, the first at 0."""
    in_time = math.inf if math.isinf(duration_s) else math.ceil(duration_s * rate)
    return _ended(
        np.arange(min(in_time, math.inf if requests is None else requests)).astype(np.float64) / rate,
        duration_s,
        requests,
    )


def _ended(times: NDArray[np.float64], duration_s: float, requests: int | None) -> NDArray[np.float64]:
    return times[times < duration_s][:requests]
