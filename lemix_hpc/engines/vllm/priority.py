"""What vLLM is told of the order and the class of a request: in its priority, of which the lowest goes first.

It is the one number that reaches the engine's scheduler of a call over HTTP and of a request of a trace alike. The running
requests with the highest one lose their cache first when it is full.
"""

from __future__ import annotations

import math

_BATCH = 1 << 50  # in milliseconds far beyond every run


def priority_of(key: float, *, patient: bool = False) -> int:
    """Of a request that the policy orders by `key` [s of the run]. One of class batch (`patient`) is behind all others."""
    return (int(key * 1e3) if math.isfinite(key) else 0) + _BATCH * patient


def is_batch(priority: int) -> bool:
    """Whether it is that of a batch request that has not been promoted."""
    return priority >= _BATCH


def promoted(priority: int) -> int:
    """That of a batch request from its promotion on."""
    return priority - _BATCH


def promotion(priority: int) -> float:
    """When a batch request is promoted [s of the run]: that is its key."""
    return promoted(priority) * 1e-3
