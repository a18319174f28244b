"""Nodes that are not as fast as others of their kind: found by comparing the same stage on all of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from operator import itemgetter

import numpy as np

from lemix_hpc.policy.drift import MEMORY, Straggler
from lemix_hpc.policy.lessons import note_ratios
from lemix_hpc.policy.state import Floats

LIMIT = 1.3
"""A stage differs from the others if it takes so many times as long as they, or less than its inverse."""
LONG_S = 60.0
"""For so long at least, before anything follows: neighbours that disturb a host come and go."""
EVERY = 20
"""Passes of a stage between two comparisons."""


class _Stage:
    """One stage of one node that is compared with others. `differs_since`: when it began to [s], inf if it does not."""

    def __init__(self) -> None:
        self.differs_since = math.inf
        self.straggler: Straggler | None = None

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
        shape = stages, 1 + max(nodes, default=-1)
        self._passes = np.zeros(shape, dtype=np.int64)
        self._log_ratio = np.zeros(shape)
        """Running means, of real over predicted times."""
        self._stages: dict[tuple[int, int], _Stage] = defaultdict(_Stage)

    def took(self, time: float, node: int, first: int, seconds: Floats, expected: Floats) -> bool:
        """A node has taken so many seconds on stages from the `first` on, and was expected to take `expected`, 0 where nothing
        is known. Whether it has differed for long."""
        if not note_ratios(self._passes, self._log_ratio, node, first, seconds, expected, EVERY):
            return False
        stages = range(first, first + seconds.size)
        differ = [self._compared(time, node, stage) for stage in stages if self._due(node, stage)]
        return any(differ)

    def _due(self, node: int, stage: int) -> bool:
        return bool(self._passes[stage, node] >= MEMORY and self._passes[stage, node] % EVERY == 0)

    def _compared(self, time: float, node: int, stage: int) -> bool:
        means = self._log_ratio[stage]
        known = means[self._passes[stage] >= MEMORY]
        # Of two nodes, the slower one is the odd one.
        usual = np.partition(known, (known.size - 1) // 2)[(known.size - 1) // 2]
        return self._stages[stage, node].compared(node, stage, math.exp(means[node] - usual), time)

    @property
    def stragglers(self) -> list[Straggler]:
        """All that were named, by stage and node; those with `until_s` None go on."""
        return [
            each.straggler for _, each in sorted(self._stages.items(), key=itemgetter(0)) if each.straggler is not None
        ]
