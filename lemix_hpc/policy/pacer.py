"""When the next batch of a node is due: what is known of deadlines, pass times, and training on the first stage.

It belongs to what forms the node's batches: its leader, or the engine's own scheduler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from lemix_hpc.policy.latency import LatencyModel, Shape
from lemix_hpc.policy.pacing import (
    FIRST_MARGIN,
    LATE_FOR_PROMPTS,
    LEAST_PART,
    Pace,
    batch_due,
    idle_due,
    longest_batch,
    longest_in_time,
    margin_after,
    prompts_due,
    seconds_through,
    shared_seconds,
    token_deadline,
)


class PacedRequest(Protocol):
    """What deadlines and pass times depend on. `next_length`: tokens to compute next; `cached`: those before them; `produced`:
    tokens of the answer so far, the first one at `first_token` [s]; `part`: what its batch has taken of `next_length`;
    `patient`: of class batch."""

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

    @property
    def part(self) -> int: ...

    @property
    def patient(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Waiting:
    """Requests whose prompts wait: the most urgent one, None without any, and the shape of all of them. There may be very many,
    and somebody asks at every turn when the next batch is due."""

    first: PacedRequest | None
    shape: Shape

    @staticmethod
    def of(requests: Sequence[PacedRequest]) -> Waiting:
        """Of these, the most urgent one first."""
        shape = Shape.of([request.next_length for request in requests], [request.cached for request in requests])
        return Waiting(requests[0] if requests else None, shape)


class Pacer:
    """`latency`: what the stages of the node are taken to need; how late passes come corrects it.

    `idle_since`: since when nothing has run on the first stage, and no training waits [s]; inf otherwise. `trained_at`: when
    a stage of the node has trained last.
    """

    def __init__(self, pace: Pace, latency: LatencyModel) -> None:
        self.pace = pace
        self._latency = latency
        self.margin = FIRST_MARGIN * pace.tpot
        self.idle_since = math.inf
        self.trained_at = -math.inf

    @property
    def idle_due(self) -> float:
        """When a batch may begin although none is due [s]."""
        return idle_due(self.pace, self.idle_since, self.trained_at)

    def due(self, ready: Sequence[PacedRequest], waiting: Waiting, joining: Sequence[PacedRequest] = ()) -> float:
        """When the next batch is due [s]: of the requests that are `ready` for another token, and of new ones; one of both is
        not empty. `joining`: batch requests that would go with them."""
        here = waiting.shape + Shape.of(
            [request.next_length for request in ready], [request.cached for request in ready]
        )
        seconds = self._shape_seconds(here)
        if joining:
            more = Shape.of([1] * len(joining), [request.cached for request in joining])
            seconds = shared_seconds(self.pace, seconds, self._shape_seconds(here + more))
        due = self.idle_due
        if ready:
            due = min(due, batch_due(self.first_deadline(ready), seconds, self.margin))
        if waiting.first is not None:
            decode = self.decode_seconds(ready)
            through = seconds_through(longest_batch(self.pace, decode), decode, seconds)
            due = min(due, prompts_due(self.pace, self.first_deadline([waiting.first]), through, self.margin))
        return due

    def prompt_parts(self, ready: Sequence[PacedRequest], now: float) -> PromptParts | None:
        """How prompts are cut that join these requests in a batch at `now` [s]; None: they are not, where they keep nobody
        waiting. A prompt that would be late may keep them waiting, as far as they make up for it."""
        if self.idle_since < math.inf:
            return None
        decode = self.decode_seconds(ready)
        begun = [request for request in ready if request.produced]
        latest = (self.first_deadline(begun) if begun else math.inf) + LATE_FOR_PROMPTS * self.pace.tpot

        def longest_with(request: PacedRequest, longest: float, seconds: float) -> float:
            left = self.first_deadline([request]) - now
            found = longest_in_time(self.pace, longest, decode, seconds - decode, left)
            return found if now + found <= latest else longest

        return PromptParts(longest_batch(self.pace, decode), self._shape_seconds, ready, longest_with)

    def parts_within(self, longest: float, members: Sequence[PacedRequest]) -> PromptParts:
        """How prompts are cut that join the parts of these requests, so that the batch takes at most so many seconds."""
        return PromptParts(longest, self._shape_seconds, members, lambda _request, longest, _seconds: longest)

    def seconds(self, lengths: Sequence[int], cached: Sequence[int]) -> float:
        """What a batch of so many new tokens on top of cached ones is taken to need on all stages [s]."""
        return self._shape_seconds(Shape.of(lengths, cached))

    def _shape_seconds(self, shape: Shape) -> float:
        return sum(self._latency.forward_times(shape))

    def decode_seconds(self, ready: Sequence[PacedRequest]) -> float:
        """The same of one token of each of these requests."""
        return self.seconds([1] * len(ready), [request.cached for request in ready])

    def batch_seconds(self, members: Sequence[PacedRequest]) -> float:
        """The same of the parts of these requests."""
        return self.seconds([request.part for request in members], [request.cached for request in members])

    def passed(self, members: Sequence[PacedRequest], time: float) -> None:
        """A batch of these requests has left the last stage at `time` [s]; its results are not counted yet."""
        interactive = [request for request in members if not request.patient]
        if interactive:
            late = time > self.first_deadline(interactive)
            self.margin = margin_after(self.pace, self.margin, late)

    def first_deadline(self, requests: Sequence[PacedRequest]) -> float:
        """When the first of their next tokens is due [s]."""
        return min(
            token_deadline(self.pace, request.arrival, request.first_token or 0.0, request.produced)
            for request in requests
        )


class PromptParts:
    """Cuts prompts so that a batch keeps nobody waiting for long, one prompt after the other.

    `seconds`: what a batch of a shape is taken to need. `longest_with`: how long the batch may take with the whole of another
    prompt in view, that could take so many `longest` without it, and takes so many seconds with it.
    """

    def __init__(
        self,
        longest: float,
        seconds: Callable[[Shape], float],
        members: Sequence[PacedRequest],
        longest_with: Callable[[PacedRequest, float, float], float],
    ) -> None:
        self._longest_with = longest_with
        self._seconds = seconds
        self._shape = Shape.of([request.part for request in members], [request.cached for request in members])
        self._empty = not members
        self._longest = longest

    def take(self, request: PacedRequest) -> int:
        """How many tokens of this prompt the batch takes, 0: none any more, and no other one's."""
        whole = request.next_length
        seconds = self._with(request, whole)
        self._longest = self._longest_with(request, self._longest, seconds)
        fits = whole if seconds <= self._longest else self._most(request, whole)
        if fits < min(whole, LEAST_PART):
            fits = min(whole, LEAST_PART) if self._empty else 0
        self._shape = self._shape_with(request, fits)
        self._empty = False
        return fits

    def _most(self, request: PacedRequest, too_many: int) -> int:
        fits = 0
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if self._with(request, middle) <= self._longest:
                fits = middle
            else:
                too_many = middle
        return fits

    def _with(self, request: PacedRequest, tokens: int) -> float:
        return self._seconds(self._shape_with(request, tokens))

    def _shape_with(self, request: PacedRequest, tokens: int) -> Shape:
        return self._shape + Shape.of((tokens,), (request.cached,))
