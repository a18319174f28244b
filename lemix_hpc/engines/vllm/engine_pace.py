"""The pace of a node whose batches vLLM's scheduler forms: in the engine process, as other nodes' leaders keep it.

Times are seconds of this host's monotonic clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lemix_hpc.policy.pacer import Pacer
from lemix_hpc.policy.pacing import Pace
from lemix_hpc.profiling.coefficients import CoefficientFile

ORDERS = frozenset(("keep_pace", "first_stage_idle"))
"""The methods of `EnginePace` that the leader calls."""


@dataclass(slots=True)
class _Paced:
    """A request of vLLM's, as the pacer looks at one."""

    request: Any
    arrival: float
    first_token: float | None = None

    @property
    def next_length(self) -> int:
        return int(self.request.num_tokens - self.request.num_computed_tokens)

    @property
    def cached(self) -> int:
        return int(self.request.num_computed_tokens)

    @property
    def produced(self) -> int:
        return int(self.request.num_output_tokens)

    @property
    def part(self) -> int:
        return self.next_length

    @property
    def patient(self) -> bool:
        """vLLM knows no classes: batch requests come behind the others by their priority."""
        return False


class EnginePace:
    """For the engine's own thread alone. Nothing is held until the leader has given a pace to keep.

    Methods take vLLM's requests: those that are `running`, and those that are `waiting`, in vLLM's order.
    """

    def __init__(self, stages: int, now: Callable[[], float] = time.monotonic) -> None:
        self._stages = stages
        self._now = now
        self._pacer: Pacer | None = None
        self._requests: dict[str, _Paced] = {}

    def keep_pace(self, ttft: float, tpot: float, coefficients: str) -> None:
        """Hold batches until they are due; see `lemix_hpc.runtime.transport.messages.KeepPace`."""
        latency = CoefficientFile.model_validate_json(coefficients).latency(self._stages)
        self._pacer = Pacer(Pace(ttft, tpot), latency)

    def first_stage_idle(self, since: float) -> None:
        """Nothing has run on the first stage since then, and no training waits there; inf: that is over."""
        if self._pacer is not None:
            self._pacer.idle_since = since

    def arrived(self, request: Any) -> None:
        """A request has come. vLLM's own time of that is one of the wall clock."""
        arrival = self._now() - max(0.0, time.time() - request.arrival_time)
        self._requests.setdefault(request.request_id, _Paced(request, arrival))

    def forget(self, request_id: str) -> None:
        self._requests.pop(request_id, None)

    def until_due(self, running: Sequence[Any], waiting: Iterable[Any]) -> float:
        """Seconds for which the next batch is held, 0 if it is not."""
        if self._pacer is None:
            return 0.0
        started, new = self._told_apart(running, waiting)
        if not started and not new:
            return 0.0
        return max(0.0, self._pacer.due(started, new) - self._now())

    def most_tokens(self, running: Sequence[Any], waiting: Iterable[Any], limit: int) -> int:
        """How many tokens the batch that is due now takes at most, so that its prompts keep nobody waiting for long."""
        if self._pacer is None:
            return limit
        decoding = [paced for paced in self._of(running) if paced.produced]
        parts = self._pacer.prompt_parts(decoding)
        if parts is None:
            return limit
        tokens = sum(paced.next_length for paced in decoding)
        prompts = [paced for paced in self._of(running) if not paced.produced]
        for prompt in [*prompts, *self._of(waiting)]:
            part = parts.take(prompt)
            tokens += part
            if part < prompt.next_length or tokens >= limit:
                break
        return min(tokens, limit)

    def passed(self, requests: Iterable[str]) -> None:
        """The tokens of a batch are here, and not counted yet."""
        members = self._known(requests)
        if self._pacer is not None and members:
            self._pacer.passed(members, self._now())

    def counted(self, requests: Iterable[str]) -> None:
        """The tokens of this batch are counted now."""
        for paced in self._known(requests):
            if paced.first_token is None and paced.produced:
                paced.first_token = self._now()

    def _known(self, requests: Iterable[str]) -> list[_Paced]:
        return [self._requests[request] for request in requests if request in self._requests]

    def _of(self, requests: Iterable[Any]) -> list[_Paced]:
        """Those of which there is something to compute: not the ones whose last token is still on its way."""
        return [paced for paced in self._known(r.request_id for r in requests) if paced.next_length > 0]

    def _told_apart(self, running: Sequence[Any], waiting: Iterable[Any]) -> tuple[list[_Paced], list[_Paced]]:
        """Requests that a batch has had before, also those whose cache was taken from them since, and new ones."""
        queued = self._of(waiting)
        started = [*self._of(running), *(paced for paced in queued if paced.produced)]
        return started, [paced for paced in queued if not paced.produced]
