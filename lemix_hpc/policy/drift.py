"""How far predictions are off, and the alarm when a coefficient file no longer describes the machine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lemix_hpc.policy.events import PassKind

MEMORY = 100
"""How many passes a running figure covers."""
FEWEST = 20
"""Passes before an alarm can be raised: the first ones of a run are often slow."""
LARGEST_ERROR = 1.0
"""A single pass counts as no more than this, so that one pause of the machine is no drift."""
LARGEST_RATIO = 10.0
DEFAULT_LIMIT = 0.5


@dataclass(frozen=True, slots=True)
class Drift:
    """Passes of this kind took up to `ratio` times (below 1: down to) what the file says.

    From `since_s` to `until_s`, seconds of the run; `until_s` is None while it lasts.
    """

    stage: int
    kind: PassKind
    ratio: float
    since_s: float
    until_s: float | None = None


@dataclass(frozen=True, slots=True)
class Straggler:
    """A stage took up to `ratio` times as long as the same stage of other nodes of its kind.

    From `since_s` to `until_s`, seconds of the run; `until_s` is None while it lasts.
    """

    node: int
    stage: int
    ratio: float
    since_s: float
    until_s: float | None = None


def relative_error(predicted: float, seconds: float) -> float:
    """The larger over the smaller, less 1, at most `LARGEST_ERROR`: twice and half as long are equally wrong."""
    small, large = min(predicted, seconds), max(predicted, seconds)
    return LARGEST_ERROR if large >= (1.0 + LARGEST_ERROR) * small else large / small - 1.0


def followed(
    before: Drift | None,
    stage: int,
    kind: PassKind,
    time: float,
    passes: int,
    log_ratio: float,
    error: float,
    limit: float,
) -> Drift | None:
    """The alarm about a stage and kind of pass, after so many passes with this running mean of the logarithm of real over given
    times, and of relative errors; `before`: what it was.

    It is raised when the error exceeds `limit`, and ends when it is below half of that.
    """
    lasting = before is not None and before.until_s is None
    if not lasting and (passes < FEWEST or error <= limit):
        return before
    ratio, since = math.exp(log_ratio), time
    if before is not None:
        ratio, since = _farther(before.ratio, ratio), before.since_s
    return Drift(stage, kind, ratio, since, time if lasting and error < limit / 2 else None)


def _farther(one: float, other: float) -> float:
    """The ratio that is farther from 1."""
    return max(one, other, key=lambda ratio: abs(math.log(ratio)))
