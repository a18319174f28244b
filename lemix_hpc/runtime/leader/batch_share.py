"""When batch requests run on a paced node, and what part of the time is theirs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lemix_hpc.policy.classes import batch_debt_after, may_fill, takes_prompts
from lemix_hpc.policy.pacer import Pacer, PromptParts
from lemix_hpc.policy.pacing import LEAST_PART, longest_batch, next_deadline, room_for_batch
from lemix_hpc.runtime.leader.request_queues import NodeRequest, RequestQueues


def next_due(pacer: Pacer, queues: RequestQueues) -> float:
    """When the next batch is due [s]: inf without interactive requests."""
    if not queues.interactive:
        return math.inf
    return pacer.due(list(queues.interactive.ready), queues.interactive.waiting, list(queues.batch.ready))


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

    def trained(self, seconds: float) -> None:
        """A stage has trained for so long."""
        self._owed = batch_debt_after(self._owed, self._share, seconds, 0.0, self._pacer.pace.tpot)

    def due(self, queues: RequestQueues, now: float, at_first_stage: int, generating: int) -> float:
        """When a batch of batch requests alone may begin [s], inf: not before something happens."""
        if not queues.batch:
            return math.inf
        room = self._pacer.pace.tpot, at_first_stage, self._in_flight, generating, self._stages
        if may_fill(self._pacer.idle_due <= now, self._owed, *room):
            return now if now + self._least(queues) <= self._before_interactive(queues) else math.inf
        return self._pacer.idle_due if may_fill(True, self._owed, *room) else math.inf

    def parts(self, queues: RequestQueues, members: Sequence[NodeRequest], now: float, *, alone: bool) -> BatchParts:
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

    def formed(self, members: Sequence[NodeRequest], interactive: int, now: float) -> None:
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
            if not request.patient and (request.partial or len(request.output) + 1 < request.output_wanted):
                produced, first = len(request.output), request.first_token or 0.0
                deadline = next_deadline(
                    self._pacer.pace, request.arrival, first, produced, request.partial, now + seconds
                )
                self._interactive_due = min(self._interactive_due, deadline - seconds - self._pacer.margin)

    def ended(self, size: int, interactive: int) -> None:
        """A batch of so many members has left the last stage."""
        self._in_flight -= interactive < size
        self._interactive_in_flight -= interactive > 0
        if not self._interactive_in_flight:
            self._interactive_due = math.inf

    def _before_interactive(self, queues: RequestQueues) -> float:
        """When the next batch with interactive requests is due, those included that are in a batch now [s]."""
        return min(next_due(self._pacer, queues), self._interactive_due)

    def _least(self, queues: RequestQueues) -> float:
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

    def take(self, request: NodeRequest) -> int:
        """How many tokens of this request the batch takes, 0: none, and no other one's."""
        begins = request.cached == 0 or request.next_length > 1
        return 0 if begins and not self._prompts else self._parts.take(request)
