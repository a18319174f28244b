"""What the stages' passes tell of tokens: the time between them, and how much stage time prompts, decode and training took."""

from __future__ import annotations

import math
from collections.abc import Iterator

from lemix_hpc.policy.classes import ServiceClass
from lemix_hpc.records.schema import Stretch
from lemix_hpc.report.recent import AtHand, Known, Recent

WORK = ("prefill", "decode", "forward", "backward", "step")


class BetweenTokens:
    """Seconds between tokens that follow one another in an answer, of all finished requests: the first token came to its
    leader, and each further one when its pass on the last stage ended. Of tokens that came `since` then [s]."""

    def __init__(self, served: AtHand, last_stage: int, since: float = 0.0) -> None:
        self._since = since
        self._served = served
        self._last_stage = last_stage
        self._at: Recent[str, float] = Recent()

    def add(self, stretch: Stretch) -> Iterator[tuple[ServiceClass, float]]:
        """The next work in the order of starts: what its tokens came after, with the class of their requests."""
        if stretch.kind != "serve" or stretch.stage != self._last_stage:
            return
        for task, known in zip(stretch.members, self._served.of(stretch), strict=True):
            if known is None or not known.finished or known.tokens < 2 or known.first_token is None:
                continue
            before = self._at.get(task, known.first_token)
            if stretch.end > before:
                if before >= self._since:
                    yield known.service, stretch.end - before
                self._at[task] = stretch.end


class StageShares:
    """Seconds of all stages in each kind of `WORK`. A batch is all `prefill` if any request in it had no token before."""

    def __init__(self, served: AtHand) -> None:
        self._served = served
        self._seconds = dict.fromkeys(WORK, 0.0)

    def add(self, stretch: Stretch) -> None:
        """The next work in the order of starts."""
        if stretch.kind == "serve":
            prefills = any(stretch.end <= _first_token(known) for known in self._served.of(stretch))
            self._seconds["prefill" if prefills else "decode"] += stretch.end - stretch.start
        elif stretch.kind in self._seconds:
            self._seconds[stretch.kind] += stretch.end - stretch.start

    def of(self, available: float, weight: float = 1.0) -> dict[str, float] | dict[str, None]:
        """Shares of so many stage seconds, 0..1, if each second of work stands for `weight`; None if there are none."""
        if available <= 0:
            return dict.fromkeys(WORK)
        return {kind: weight * time / available for kind, time in self._seconds.items()}


def _first_token(known: Known | None) -> float:
    return math.inf if known is None or known.first_token is None else known.first_token
