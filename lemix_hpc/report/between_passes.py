"""What serving passes wait for although their stage is free: messages, and the loops of the ranks."""

from __future__ import annotations

import math

from lemix_hpc.records.schema import Stretch
from lemix_hpc.report.recent import AtHand, Known, Recent


class Free:
    """When each stage had ended what it ran before [s]."""

    def __init__(self) -> None:
        self._until: dict[tuple[int, int], float] = {}

    def before(self, stretch: Stretch) -> float:
        """Of the stage of the next stretch of work in the order of their starts; -inf before the first."""
        place = stretch.node, stretch.stage
        until = self._until.get(place, -math.inf)
        self._until[place] = max(until, stretch.end)
        return until


class HandedOn:
    """Seconds from a batch's end on one stage to its start on the next one, or from when that stage was free, if that was
    later."""

    def __init__(self) -> None:
        self._free = Free()
        self._ends: Recent[tuple[int, int, int], float] = Recent()

    def add(self, stretch: Stretch) -> float | None:
        """The next work in the order of starts; None if it is not a batch that was handed on."""
        free = self._free.before(stretch)
        if stretch.kind != "serve":
            return None
        before = self._ends.get((stretch.node, stretch.batch, stretch.stage - 1))
        self._ends[stretch.node, stretch.batch, stretch.stage] = stretch.end
        return None if before is None else stretch.start - max(before, free)


class NextToken:
    """Seconds from a batch's end on the last stage to the start of the next one with its requests on the first stage, or from
    when that was free, if that was later. Only of batches whose requests have all had a token before."""

    def __init__(self, served: AtHand, last_stage: int) -> None:
        self._served = served
        self._last_stage = last_stage
        self._free = Free()
        self._had: Recent[str, float] = Recent()

    def add(self, stretch: Stretch) -> float | None:
        """The next work in the order of starts; None if it is not such a batch on the first stage."""
        free = self._free.before(stretch)
        if stretch.kind != "serve":
            return None
        wait = None
        if stretch.stage == 0 and all(_has_begun(known, stretch.start) for known in self._served.of(stretch)):
            had = max(self._had.get(task, -math.inf) for task in stretch.members)
            wait = stretch.start - max(free, had) if had > -math.inf else None
        if stretch.stage == self._last_stage:
            for task in stretch.members:
                self._had[task] = stretch.end
        return wait


def _has_begun(known: Known | None, now: float) -> bool:
    return known is not None and known.first_token is not None and now > known.first_token
