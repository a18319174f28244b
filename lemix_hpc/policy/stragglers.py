"""Nodes that are not as fast as others of their kind: found by comparing the same stage on all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import median_low

from lemix_hpc.policy.drift import LARGEST_RATIO, MEMORY, Running
from lemix_hpc.policy.events import PassMeasured

LIMIT = 1.3
"""A stage differs from the others if it takes so many times as long as they, or less than its inverse."""
LONG_S = 60.0
"""For so long at least, before anything follows: neighbours that disturb a host come and go."""
EVERY = 20
"""Passes of a stage between two comparisons."""


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


class _Stage:
    """One stage of one node. `log_ratio`: of real over predicted times; `differs_since`: when it began to [s], inf if it does
    not."""

    def __init__(self) -> None:
        self.log_ratio = Running()
        self.differs_since = math.inf
        self.straggler: Straggler | None = None

    @property
    def known(self) -> bool:
        return self.log_ratio.count >= MEMORY

    def compared(self, node: int, stage: int, ratio: float, now: float) -> bool:
        """It takes `ratio` times as long as others. Whether it has differed for long."""
        differs = max(ratio, 1.0 / ratio) >= LIMIT
        self.differs_since = min(self.differs_since, now) if differs else math.inf
        long = now - self.differs_since >= LONG_S
        self._name(node, stage, ratio, now, long=long)
        return long

    def _name(self, node: int, stage: int, ratio: float, now: float, *, long: bool) -> None:
        """Slow ones are named; it is over when half of the excess is gone."""
        before = self.straggler
        if long and ratio > 1.0:
            since, most = (before.since_s, before.ratio) if before else (self.differs_since, ratio)
            self.straggler = Straggler(node, stage, max(ratio, most), since)
        elif before is not None and before.until_s is None and ratio < (1.0 + LIMIT) / 2:
            self.straggler = replace(before, until_s=now)


class Peers:
    """The nodes of one kind, stage by stage.

    What is compared is real over predicted time, by what was learned of the kind: so it does not matter which nodes have long
    passes, nor how far predictions are off for all of them.
    """

    def __init__(self, nodes: Iterable[int], stages: int) -> None:
        members = list(nodes)
        self._stages = [{node: _Stage() for node in members} for _ in range(stages)]

    def took(self, event: PassMeasured, predicted: float) -> bool:
        """A pass has ended that was predicted to take `predicted` > 0 [s]. Whether its node has differed for long."""
        same = self._stages[event.stage]
        mine = same[event.node]
        mine.log_ratio.add(math.log(min(max(event.seconds / predicted, 1.0 / LARGEST_RATIO), LARGEST_RATIO)))
        if not mine.known or mine.log_ratio.count % EVERY:
            return False
        # Of two nodes, the slower one is the odd one.
        usual = median_low(each.log_ratio.mean for each in same.values() if each.known)
        ratio = math.exp(mine.log_ratio.mean - usual)
        return mine.compared(event.node, event.stage, ratio, event.time)

    @property
    def stragglers(self) -> list[Straggler]:
        """All that were named, by stage and node; those with `until_s` None go on."""
        return [each.straggler for same in self._stages for each in same.values() if each.straggler is not None]
