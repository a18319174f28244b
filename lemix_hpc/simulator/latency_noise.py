"""How far real passes are from the coefficient file's times: log-normal, drawn for each pass by what it is.

A pass is told by its task and stage, not by when it runs, so that the same work takes as long under every policy.
"""

from __future__ import annotations

import math

import numpy as np

from lemix_hpc.policy.jit import compiled
from lemix_hpc.simulator.cluster_state import SimulationConfig


@compiled
def spread(config: SimulationConfig, task: int, turn: int, stage: int, direction: int) -> float:
    """The factor on the predicted time of a task's `turn`-th pass in a direction through a stage."""
    if config.latency_error == 0.0:
        return 1.0
    bits = _mixed(np.uint64(config.seed))
    for part in (task, turn, 3 * stage + direction):
        bits = _mixed(bits ^ np.uint64(part))
    radius = math.sqrt(-2.0 * math.log(1.0 - _uniform(bits)))
    normal = radius * math.cos(2.0 * math.pi * _uniform(_mixed(bits)))
    return math.exp(config.latency_error * normal)


@compiled
def _uniform(bits: np.uint64) -> float:
    """In [0, 1)."""
    return float(bits >> np.uint64(11)) * (1.0 / (1 << 53))


@compiled
def _mixed(bits: np.uint64) -> np.uint64:
    """The next number of splitmix64 (Steele et al., OOPSLA 2014)."""
    bits += np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
