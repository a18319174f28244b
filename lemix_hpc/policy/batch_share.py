"""When batch requests run on a paced node, and what part of the time is theirs.

Like the pacer it belongs to what forms the node's batches: its leader, or the engine's own scheduler.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from lemix_hpc.policy.classes import batch_debt_after, may_fill, takes_prompts
from lemix_hpc.policy.pacer import PacedRequest, Pacer, PromptParts, Waiting
from lemix_hpc.policy.pacing import LEAST_PART, longest_batch, next_deadline, room_for_batch


class BatchMember(PacedRequest, Protocol):
    """`partial`: more of its prompt follows; `last`: its batch gives the last token of its answer."""

    @property
    def partial(self) -> bool: ...

    @property
    def last(self) -> bool: ...


class ClassQueue(Protocol):
    """Requests of one class that are in no batch: those that are `ready` for another token, and others. `first`: the one that
    goes into the next batch first."""

    @property
    def ready(self) -> Sequence[PacedRequest]: ...

    @property
    def first(self) -> PacedRequest | None: ...


class InteractiveQueue(ClassQueue, Protocol):
    """`waiting`: those whose prompts wait."""

    @property
    def waiting(self) -> Waiting: ...


class ClassQueues(Protocol):
    @property
    def interactive(self) -> InteractiveQueue: ...

    @property
    def batch(self) -> ClassQueue: ...


def next_due(pacer: Pacer, queues: ClassQueues) -> float:
    """When the next batch is due [s]: inf without interactive requests."""
    interactive = queues.interactive
    if interactive.first is None:
        return math.inf
    return pacer.due(interactive.ready, interactive.waiting, queues.batch.ready)


class BatchShare:
    """`share`: of the time that interactive requests leave on the node of this pacer, with this many stages."""

    def __init__(self, pacer: Pacer, share: float, stages: int) -> None:
        self._pacer = pacer
        self._share = share
        self._stages = stages
        self._owed = 0.0
        self._in_flight = 0
        self._interactive_in_flight = 0
        self._interactive_due = math.inf

    def trained(self, seconds: float, now: float) -> None:
        """A stage has trained for so long, until `now` [s]."""
        if seconds > 0.0:
            self._pacer.trained_at = now
        self._owed = batch_debt_after(self._owed, self._share, seconds, 0.0, self._pacer.pace.tpot)

    def due(self, queues: ClassQueues, now: float, at_first_stage: int, generating: int) -> float:
        """When a batch of batch requests alone may begin [s], inf: not before something happens."""
        if queues.batch.first is None:
            return math.inf
        room = self._pacer.pace.tpot, at_first_stage, self._in_flight, generating, self._stages
        if may_fill(self._pacer.idle_due <= now, self._owed, *room):
            return now if now + self._least(queues) <= self._before_interactive(queues) else math.inf
        return self._pacer.idle_due if may_fill(True, self._owed, *room) else math.inf

    def parts(self, queues: ClassQueues, members: Sequence[PacedRequest], now: float, *, alone: bool) -> BatchParts:
        """How batch requests join these members of a batch."""
        pace = self._pacer.pace
        if alone:
            room = longest_batch(pace, self._pacer.decode_seconds(queues.batch.ready))
            room = min(room, self._before_interactive(queues) - now)
        else:
            seconds = self._pacer.batch_seconds(members)
            room = room_for_batch(pace, seconds, self._pacer.first_deadline(members), now)
        prompts = takes_prompts(self._pacer.idle_due <= now, self._owed)
        return BatchParts(self._pacer.parts_within(room, members), prompts)

    def formed(self, members: Sequence[BatchMember], interactive: int, now: float) -> None:
        """A batch is formed, the first of these members are `interactive`. The others pay for what they add to its time, while
        training waits; and it is known when its interactive requests are due again."""
        seconds = self._pacer.batch_seconds(members)
        if interactive < len(members):
            self._in_flight += 1
            if self._pacer.idle_due > now:
                alone = self._pacer.batch_seconds(members[:interactive]) if interactive else 0.0
                self._owed = batch_debt_after(self._owed, self._share, 0.0, seconds - alone, self._pacer.pace.tpot)
        if not interactive:
            return
        self._interactive_in_flight += 1
        for request in members:
            if not request.patient and (request.partial or not request.last):
                first, ends = request.first_token or 0.0, now + seconds
                deadline = next_deadline(
                    self._pacer.pace, request.arrival, first, request.produced, request.partial, ends
                )
                self._interactive_due = min(self._interactive_due, deadline - seconds - self._pacer.margin)

    def ended(self, size: int, interactive: int) -> None:
        """A batch of so many members has left the last stage."""
        self._in_flight -= interactive < size
        self._interactive_in_flight -= interactive > 0
        if not self._interactive_in_flight:
            self._interactive_due = math.inf

    def _before_interactive(self, queues: ClassQueues) -> float:
        """When the next batch with interactive requests is due, those included that are in a batch now [s]."""
        return min(next_due(self._pacer, queues), self._interactive_due)

    def _least(self, queues: ClassQueues) -> float:
        """What the least batch of batch requests takes: all that have begun, or the beginning of a prompt."""
        if queues.batch.ready:
            return self._pacer.decode_seconds(queues.batch.ready)
        request = queues.batch.first
        assert request is not None, "there is one"
        return self._pacer.seconds([min(request.next_length, LEAST_PART)], [request.cached])


class BatchParts:
    """What of batch requests joins a batch: of those that have begun the next token, and of the others, if `prompts`, as much
    as fits."""

    def __init__(self, parts: PromptParts, prompts: bool) -> None:
        self._parts = parts
        self._prompts = prompts

    def take(self, request: PacedRequest) -> int:
        """How many tokens of this request the batch takes, 0: none, and no other one's."""
        begins = request.cached == 0 or request.next_length > 1
        return 0 if begins and not self._prompts else self._parts.take(request)
