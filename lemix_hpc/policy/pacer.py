"""When the next batch of a node is due: what is known of deadlines, pass times, and training on the first stage.

It belongs to what forms the node's batches: its leader, or the engine's own scheduler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from lemix_hpc.policy.latency import LatencyModel, Shape
from lemix_hpc.policy.pacing import (
    FIRST_MARGIN,
    LEAST_PART,
    Pace,
    batch_due,
    idle_due,
    longest_batch,
    margin_after,
    token_deadline,
)


class PacedRequest(Protocol):
    """What deadlines and pass times depend on. `next_length`: tokens to compute next; `cached`: those before them; `produced`:
    tokens of the answer so far, the first one at `first_token` [s]."""

    @property
    def arrival(self) -> float: ...

    @property
    def first_token(self) -> float | None: ...

    @property
    def next_length(self) -> int: ...

    @property
    def cached(self) -> int: ...

    @property
    def produced(self) -> int: ...


class Pacer:
    """`latency`: what the stages of the node are taken to need; how late passes come corrects it.

    `idle_since`: since when nothing has run on the first stage, and no training waits [s]; inf otherwise.
    """

    def __init__(self, pace: Pace, latency: LatencyModel) -> None:
        self._pace = pace
        self._latency = latency
        self._margin = FIRST_MARGIN * pace.tpot
        self.idle_since = math.inf

    def due(self, ready: Sequence[PacedRequest], waiting: Sequence[PacedRequest]) -> float:
        """When the next batch is due [s]: of the requests that are `ready` for another token, and of new ones, the most
        urgent first. One of both is not empty."""
        deadline = min(map(self._deadline, [*ready, *waiting[:1]]))
        here = [*ready, *waiting]
        seconds = self._seconds([request.next_length for request in here], [request.cached for request in here])
        return min(batch_due(deadline, seconds, self._margin), idle_due(self._pace, self.idle_since))

    def prompt_parts(self, ready: Sequence[PacedRequest]) -> PromptParts | None:
        """How prompts are cut that join these requests in a batch; None: they are not, where they keep nobody waiting."""
        if self.idle_since < math.inf:
            return None
        return PromptParts(self._pace, self._seconds, ready)

    def _seconds(self, lengths: Sequence[int], cached: Sequence[int]) -> float:
        return sum(self._latency.forward_times(Shape.of(lengths, cached)))

    def passed(self, members: Sequence[PacedRequest], time: float) -> None:
        """A batch of these requests has left the last stage at `time` [s]; its results are not counted yet."""
        late = time > min(map(self._deadline, members))
        self._margin = margin_after(self._pace, self._margin, late)

    def _deadline(self, request: PacedRequest) -> float:
        return token_deadline(self._pace, request.arrival, request.first_token or 0.0, request.produced)


class PromptParts:
    """Cuts prompts so that a batch keeps nobody waiting for long, one prompt after the other."""

    def __init__(
        self, pace: Pace, seconds: Callable[[list[int], list[int]], float], ready: Sequence[PacedRequest]
    ) -> None:
        self._seconds = seconds
        self._lengths = [request.next_length for request in ready]
        self._cached = [request.cached for request in ready]
        self._longest = longest_batch(pace, seconds(self._lengths, self._cached))

    def take(self, request: PacedRequest) -> int:
        """How many tokens of this prompt the batch takes, 0: none any more, and no other one's."""
        whole = request.next_length
        fits = whole if self._fits(request, whole) else self._most(request, whole)
        if fits < min(whole, LEAST_PART):
            fits = 0 if self._lengths else min(whole, LEAST_PART)
        self._lengths.append(fits)
        self._cached.append(request.cached)
        return fits

    def _most(self, request: PacedRequest, too_many: int) -> int:
        fits = 0
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if self._fits(request, middle):
                fits = middle
            else:
                too_many = middle
        return fits

    def _fits(self, request: PacedRequest, tokens: int) -> bool:
        return self._seconds([*self._lengths, tokens], [*self._cached, request.cached]) <= self._longest
