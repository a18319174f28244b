"""The pace of a node whose batches vLLM's scheduler forms: in the engine process, as other nodes' leaders keep it.

Times are seconds of this host's monotonic clock.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from lemix_hpc.engines.vllm.paced_requests import Batch, Interactive, Line, Member, Paced, Queues, WaitingQueue
from lemix_hpc.engines.vllm.priority import is_batch, promotion
from lemix_hpc.engines.vllm.step_plan import NOTHING, StepPlan, plan_step
from lemix_hpc.policy.batch_share import BatchShare, next_due
from lemix_hpc.policy.classes import waits_as_batch
from lemix_hpc.policy.pacer import Pacer
from lemix_hpc.policy.pacing import Pace
from lemix_hpc.profiling.coefficients import CoefficientFile

ORDERS = frozenset(("run_began", "keep_pace", "first_stage_idle", "trained"))
"""The methods of `EnginePace` that the leader calls."""


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A batch on its way. `share`: what is to hear of its end."""

    share: BatchShare | None
    size: int
    interactive: int


class EnginePace:
    """For the engine's own thread alone. Nothing is held until the leader has given a pace to keep.

    Methods take vLLM's requests: those that are `running`, those that wait but are `holding` a cache, interactive ones that are
    `waiting`, and batch requests that wait (`batch`), each in vLLM's order.
    """

    def __init__(self, stages: int, now: Callable[[], float] = time.monotonic) -> None:
        self._stages = stages
        self._now = now
        self._began = 0.0
        self._pacer: Pacer | None = None
        self._share: BatchShare | None = None
        self._requests: dict[str, Paced] = {}
        self._in_flight: deque[_InFlight] = deque()
        self._at_first_stage = 0

    def run_began(self, at: float) -> None:
        """Zero of the times that priorities tell."""
        self._began = at

    def keep_pace(self, ttft: float, tpot: float, coefficients: str, batch_share: float) -> None:
        """Hold batches until they are due; see `lemix_hpc.runtime.transport.messages.KeepPace`."""
        latency = CoefficientFile.model_validate_json(coefficients).latency(self._stages)
        self._pacer = Pacer(Pace(ttft, tpot), latency)
        self._share = BatchShare(self._pacer, batch_share, self._stages)

    def first_stage_idle(self, since: float) -> None:
        """Nothing has run on the first stage since then, and no training waits there; inf: that is over."""
        if self._pacer is not None:
            self._pacer.idle_since = since

    def trained(self, seconds: float) -> None:
        """Stages have trained for so long in all."""
        if self._share is not None:
            self._share.trained(seconds, self._now())

    def left_first_stage(self) -> None:
        """The first stage has run the batch that was sent to it first, and a stage behind goes on with it."""
        self._at_first_stage = max(0, self._at_first_stage - 1)

    def arrived(self, request: Any) -> None:
        """A request has come. vLLM's own time of that is one of the wall clock."""
        arrival = self._now() - max(0.0, time.time() - request.arrival_time)
        patient = is_batch(request.priority)
        promoted = promotion(request.priority) if patient else math.inf
        self._requests.setdefault(request.request_id, Paced(request, arrival, patient, promoted))

    def forget(self, request_id: str) -> None:
        self._requests.pop(request_id, None)

    def nearly_over(self, request: Any) -> bool:
        """Whether the window of a batch request is: it goes with the interactive ones from then on."""
        return is_batch(request.priority) and self._began + promotion(request.priority) <= self._now()

    def until_due(
        self, running: Sequence[Any], holding: Iterable[Any], waiting: WaitingQueue, batch: Iterable[Any]
    ) -> float:
        """Seconds for which the next batch is held, 0 if it is not; inf: until something comes, or comes back."""
        if self._pacer is None or self._share is None:
            return 0.0
        now = self._now()
        queues = self._queues(running, holding, waiting, batch, now)
        if queues.batch.first is None and queues.interactive.first is None:
            return math.inf if running else 0.0
        due = next_due(self._pacer, queues)
        if due > now and queues.batch.first is not None:
            due = min(due, self._fills(self._share, queues, now), self._began + queues.batch.promotes)
        return max(0.0, due - now)

    def plan(
        self,
        running: Sequence[Any],
        holding: Iterable[Any],
        waiting: WaitingQueue,
        batch: Iterable[Any],
        limit: int,
        *,
        cuts: bool,
    ) -> StepPlan | None:
        """What the batch that is formed now takes, at most so many tokens; None: whatever vLLM likes. It `cuts` prompts, so
        that they keep nobody waiting for long."""
        if self._pacer is None or self._share is None:
            return None
        now = self._now()
        queues = self._queues(running, holding, waiting, batch, now)
        due = next_due(self._pacer, queues) <= now
        if not due and self._fills(self._share, queues, now) > now:
            return NOTHING
        return plan_step(self._pacer, self._share, queues, now, limit, alone=not due, cuts=cuts)

    def formed(self, tokens: Mapping[str, int]) -> None:
        """A batch is on its way that takes so many tokens of each of these requests, which are counted as computed now."""
        if not tokens:
            return
        now = self._now()
        parts = [(paced, tokens[paced.request.request_id]) for paced in self._known(tokens)]
        members = [Member.of(paced, part, as_batch=self._waits(paced, now)) for paced, part in parts]
        members.sort(key=lambda member: member.as_batch)
        interactive = sum(not member.as_batch for member in members)
        self._in_flight.append(_InFlight(self._share, len(members), interactive))
        self._at_first_stage += 1
        if self._share is not None:
            self._share.formed(members, interactive, now)

    def passed(self, requests: Sequence[str] | Mapping[str, int]) -> None:
        """The tokens of the batch that was formed first are here, and not counted yet."""
        if not requests:
            return
        batch = self._in_flight.popleft()
        self._at_first_stage = min(self._at_first_stage, len(self._in_flight))
        if batch.share is not None:
            batch.share.ended(batch.size, batch.interactive)
        members = self._known(requests)
        if self._pacer is not None and members:
            self._pacer.passed(members, self._now())

    def counted(self, requests: Iterable[str]) -> None:
        """The tokens of this batch are counted now."""
        for paced in self._known(requests):
            if paced.first_token is None and paced.produced:
                paced.first_token = self._now()

    def _fills(self, share: BatchShare, queues: Queues, now: float) -> float:
        """When a batch of batch requests alone may begin [s]."""
        return share.due(queues, now, self._at_first_stage, len(self._in_flight))

    def _waits(self, paced: Paced, now: float) -> bool:
        return waits_as_batch(paced.patient, self._began + paced.promoted, now)

    def _known(self, requests: Iterable[str]) -> list[Paced]:
        return [self._requests[request] for request in requests if request in self._requests]

    def _of(self, requests: Iterable[Any]) -> Iterator[Paced]:
        """Those of which there is something to compute: not the ones whose last token is still on its way."""
        known = (self._requests.get(request.request_id) for request in requests)
        return (paced for paced in known if paced is not None and paced.next_length > 0)

    def _queues(
        self,
        running: Sequence[Any],
        holding: Iterable[Any],
        waiting: WaitingQueue,
        batch: Iterable[Any],
        now: float,
    ) -> Queues:
        as_batch: list[Paced] = []
        interactive: list[Paced] = []
        for paced in self._of(running):
            (as_batch if self._waits(paced, now) else interactive).append(paced)
        queued, changing = Line((holding, waiting), self._of), self._of(chain(holding, waiting.changing))
        return Queues(
            Interactive(interactive, queued, list(changing), waiting.shape),
            Batch(as_batch, Line((batch,), self._of)),
        )
