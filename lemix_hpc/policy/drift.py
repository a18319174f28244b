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


class Running:
    """Mean of the last values: of all until there are `MEMORY`, then with older ones counting less."""

    def __init__(self, count: int = 0, mean: float = 0.0) -> None:
        self.count = count
        self.mean = mean

    def add(self, value: float) -> None:
        """Take in a value."""
        self.count += 1
        self.mean += (value - self.mean) / min(self.count, MEMORY)


def relative_error(predicted: float, seconds: float) -> float:
    """The larger over the smaller, less 1, at most `LARGEST_ERROR`: twice and half as long are equally wrong."""
    small, large = sorted((predicted, seconds))
    return LARGEST_ERROR if large >= (1.0 + LARGEST_ERROR) * small else large / small - 1.0


class DriftWatch:
    """The file's predictions for one stage and kind against what ran.

    The alarm is raised when the running relative error exceeds `limit`, and ends when it is below half of that.
    """

    def __init__(self, stage: int, kind: PassKind, limit: float) -> None:
        self._stage = stage
        self._kind = kind
        self._limit = limit
        self.log_ratio = Running()
        self.error = Running()
        self.drift: Drift | None = None

    @property
    def ratio(self) -> float:
        """Running geometric mean of real over predicted time."""
        return math.exp(self.log_ratio.mean)

    def measured(self, time: float, predicted: float, seconds: float) -> None:
        """A pass that was predicted as `predicted` > 0 has taken `seconds`."""
        self.error.add(relative_error(predicted, seconds))
        self.log_ratio.add(math.log(min(max(seconds / predicted, 1.0 / LARGEST_RATIO), LARGEST_RATIO)))
        before = self.drift
        lasting = before is not None and before.until_s is None
        if lasting or (self.error.count >= FEWEST and self.error.mean > self._limit):
            ended = lasting and self.error.mean < self._limit / 2
            since, ratio = (before.since_s, _farther(before.ratio, self.ratio)) if before else (time, self.ratio)
            self.drift = Drift(self._stage, self._kind, ratio, since, time if ended else None)


def _farther(one: float, other: float) -> float:
    """The ratio that is farther from 1."""
    return max(one, other, key=lambda ratio: abs(math.log(ratio)))
