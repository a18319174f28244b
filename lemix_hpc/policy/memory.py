"""What a scheduler has learned, as plain data: another one that forecasts with the same stage times may go on from it."""

from __future__ import annotations

from dataclasses import dataclass

from lemix_hpc.policy.drift import Drift
from lemix_hpc.policy.events import PassKind

Mean = tuple[int, float]
"""A running mean: how many values, and their mean."""


@dataclass(frozen=True, slots=True)
class LessonMemory:
    """Of one stage and kind of pass: gains and what they follow from, (terms,), (terms, terms) and (terms,), and how far
    predictions are off: of log ratios, and of relative errors before and after the correction."""

    stage: int
    kind: PassKind
    gains: tuple[float, ...]
    information: tuple[tuple[float, ...], ...]
    target: tuple[float, ...]
    log_ratio: Mean
    error: Mean
    error_after: Mean
    drift: Drift | None


@dataclass(frozen=True, slots=True)
class Learned:
    """What a run has learned of one stage and kind from `passes` passes.

    `ratio`: running geometric mean of real over the file's time. `error_before`, `error_after`: running relative error of
    the file's predictions and of the corrected ones.
    """

    stage: int
    kind: PassKind
    gains: tuple[float, ...]
    passes: int
    ratio: float
    error_before: float
    error_after: float


@dataclass(frozen=True, slots=True)
class Memory:
    """`lessons`: by kind of node, and behind those of the nodes `apart`, which are not as fast as others of their kind;
    `overhead`: what a response takes besides its stages' work, for each token [s]; `outputs`: tokens of the last answers, the
    oldest first."""

    lessons: tuple[tuple[LessonMemory, ...], ...] = ()
    overhead: float = 0.0
    outputs: tuple[int, ...] = ()
    apart: tuple[int, ...] = ()
