"""Which requests go into the batch that vLLM's scheduler is to form, and how many tokens of them.

vLLM bounds the tokens of a batch as a whole, and gives them to running requests first. So only the last prompt of a batch can
be cut, and batch requests whose prompts have been begun rest while prompts of new interactive ones join.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

from lemix_hpc.engines.vllm.paced_requests import Batch, Interactive, Paced, Queues
from lemix_hpc.policy.batch_share import BatchParts, BatchShare
from lemix_hpc.policy.pacer import Pacer


@dataclass(frozen=True, slots=True)
class StepPlan:
    """At most so many `tokens` of these `members`, by their ids, and of nobody else that runs.

    Of requests that wait it takes interactive ones unless it is of batch requests `alone`; `prompts` are those that are to
    join, vLLM's own. Of batch requests it takes the first few, so many: `batch`.
    """

    tokens: int
    members: frozenset[str]
    alone: bool
    prompts: list[Any]
    batch: int


NOTHING = StepPlan(0, frozenset(), True, [], 0)


def plan_step(
    pacer: Pacer, share: BatchShare, queues: Queues, now: float, limit: int, *, alone: bool, cuts: bool
) -> StepPlan:
    """The batch that is formed `now` [s], of at most `limit` tokens; `alone`: of batch requests. It `cuts` prompts so that they
    keep nobody waiting for long, or takes them whole."""
    step = _Step(limit, cuts)
    prompts = [] if alone else _take_interactive(step, pacer, queues.interactive, now)
    batch = 0
    if alone or (step.members and not step.full):
        parts = share.parts(queues, step.members, now, alone=alone)
        batch = _take_batch(step, parts, queues.batch, prompts_join=bool(prompts))
    members = frozenset(paced.request.request_id for paced in step.members)
    return StepPlan(step.tokens if cuts else limit, members, alone, [paced.request for paced in prompts], batch)


class _Step:
    """A batch so far. It is `full` when a request has found no room, and `cut` when the last prompt in it is."""

    def __init__(self, limit: int, cuts: bool) -> None:
        self._limit = limit
        self._cuts = cuts
        self.members: list[Paced] = []
        self.tokens = 0
        self.full = False
        self.cut = False

    def take(self, paced: Paced, part: int) -> bool:
        """Whether a request joins, with this part of it if it can be cut."""
        left = self._limit - self.tokens
        part = min(part, left) if self._cuts else min(part, 1) * paced.next_length
        self.full = part == 0 or part > left
        if not self.full:
            paced.part = part
            self.members.append(paced)
            self.tokens += part
            self.cut = self.cut or part < paced.next_length
        return not self.full

    def take_prompts(self, prompts: Iterable[Paced], part_of: Callable[[Paced], int]) -> list[Paced]:
        """Those that join, one after the other, until there is no room or one is cut."""
        taken = []
        for paced in prompts:
            self.full = self.full or self.cut
            if self.full or not self.take(paced, part_of(paced)):
                break
            taken.append(paced)
        return taken


def _take_interactive(step: _Step, pacer: Pacer, queue: Interactive, now: float) -> list[Paced]:
    """Those that are queued and join."""
    for paced in queue.running:
        if paced.decodes:
            step.take(paced, 1)
    parts = pacer.prompt_parts(step.members, now)
    part_of: Callable[[Paced], int] = _whole if parts is None else parts.take
    begun = [paced for paced in queue.running if not paced.decodes]
    taken = step.take_prompts(chain(begun, queue.queued), part_of)
    return taken[len(begun) :]


def _take_batch(step: _Step, parts: BatchParts, queue: Batch, *, prompts_join: bool) -> int:
    """How many join of those that are queued."""
    for paced in queue.ready:
        if not step.take(paced, parts.take(paced)):
            return 0
    begun = queue.partial
    if step.cut or (begun and prompts_join):
        return 0
    step.take_prompts(begun, parts.take)
    return len(step.take_prompts(queue.queued, parts.take))


def _whole(paced: Paced) -> int:
    return paced.next_length
