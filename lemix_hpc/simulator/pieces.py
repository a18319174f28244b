"""Between which pieces of its pass a stage looks at what has come: the twin of the turns of the worker's loop."""

from __future__ import annotations

import math
from typing import Any

from lemix_hpc.policy.execution_rules import BACKWARD, NOTHING
from lemix_hpc.policy.jit import inlined
from lemix_hpc.simulator.cluster_state import SimulationConfig

ROUNDING = 1e-9
"""Pieces by which a time may be off a boundary and still count as on it."""


@inlined
def pieces_of(config: SimulationConfig, kind: int, stage: int) -> int:
    """In how many pieces a training pass is cut: a backward that runs its forward again in twice as many."""
    return 2 * config.pieces if kind == BACKWARD and stage < config.recomputing else config.pieces


@inlined
def pieces_until(stage: Any, time: float) -> int:
    """After how many pieces of what runs a stage looks, for the first time from `time` on.

    It does so once between two pieces, and goes on before others can act on what it tells them then.
    """
    pieces = max(1, math.ceil((time - stage.start) / stage.piece - ROUNDING))
    if stage.start + pieces * stage.piece <= stage.looked + ROUNDING * stage.piece:
        pieces += 1
    return pieces


@inlined
def next_look(stage: Any, time: float) -> float:
    """When a stage looks for the first time from `time` on [s]: at once while nothing runs."""
    if stage.kind == NOTHING or stage.piece <= 0.0:
        return time
    return max(time, stage.start + pieces_until(stage, time) * stage.piece)
