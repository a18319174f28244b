"""vLLM's requests as the policy looks at them. Times are seconds of this host's monotonic clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

from lemix_hpc.policy.latency import Shape
from lemix_hpc.policy.pacer import Waiting


@dataclass(slots=True)
class Paced:
    """A request of vLLM's. `patient`: it came as one of class batch, and is `promoted` then [s of the run]; `part`: what the
    batch that is planned takes of it."""

    request: Any
    arrival: float
    patient: bool
    promoted: float
    first_token: float | None = None
    part: int = 0

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
    def decodes(self) -> bool:
        """Whether it is to have its next token, and nothing of a prompt."""
        return self.next_length == 1 and self.cached > 0


@dataclass(frozen=True, slots=True)
class Member:
    """A request of a batch as it was when that was formed. `as_batch`: it waits for interactive ones, see
    `lemix_hpc.policy.classes`; the others as in `lemix_hpc.policy.batch_share.BatchMember`."""

    arrival: float
    first_token: float | None
    next_length: int
    cached: int
    produced: int
    part: int
    patient: bool
    last: bool
    as_batch: bool

    @property
    def partial(self) -> bool:
        return self.part < self.next_length

    @staticmethod
    def of(paced: Paced, part: int, *, as_batch: bool) -> Member:
        """One of which the batch takes a `part` that vLLM counts as computed already."""
        cached = paced.cached - part
        return Member(
            arrival=paced.arrival,
            first_token=paced.first_token,
            next_length=int(paced.request.num_tokens) - cached,
            cached=cached,
            produced=paced.produced,
            part=part,
            patient=paced.patient,
            last=paced.produced + 1 >= paced.request.max_tokens,
            as_batch=as_batch,
        )


class WaitingQueue(Protocol):
    """vLLM's requests of one class that wait, the first one first. There may be very many: nobody looks at more than the first
    few, and those that are `changing` while they wait; `shape`: of what all others are to compute, of which nothing is yet."""

    def __iter__(self) -> Iterator[Any]: ...

    @property
    def changing(self) -> Iterable[Any]: ...

    @property
    def shape(self) -> Shape: ...


@dataclass(frozen=True, slots=True)
class Interactive:
    """Interactive requests with something to compute: those that run, and those that are `queued`, the first one first; of
    those the ones that are `changing`, and the `shape` of all others, none of which has an answer yet."""

    running: list[Paced]
    queued: Iterable[Paced]
    changing: list[Paced]
    shape: Shape

    @property
    def ready(self) -> list[Paced]:
        """Those that a batch has had before, also those whose cache was taken from them since."""
        return [*self.running, *(paced for paced in self.changing if paced.produced)]

    @property
    def waiting(self) -> Waiting:
        changing = Waiting.of([paced for paced in self.changing if not paced.produced])
        first = next((paced for paced in self.queued if not paced.produced), None)
        return Waiting(first, changing.shape + self.shape)

    @property
    def first(self) -> Paced | None:
        return next(chain(self.running, self.queued), None)


@dataclass(frozen=True, slots=True)
class Batch:
    """Batch requests with something to compute: those that run, and those that are queued, the first one first."""

    running: list[Paced]
    queued: Iterable[Paced]

    @property
    def ready(self) -> list[Paced]:
        """Those that are to have their next token."""
        return [paced for paced in self.running if paced.decodes]

    @property
    def first_queued(self) -> Paced | None:
        return next(iter(self.queued), None)

    @property
    def partial(self) -> list[Paced]:
        """Those whose prompts are computed in part."""
        return [paced for paced in self.running if not paced.decodes]

    @property
    def first(self) -> Paced | None:
        return next(chain(self.ready, self.partial), self.first_queued)

    @property
    def promotes(self) -> float:
        """When the first of them is promoted [s of the run]; that is the order of those that are queued."""
        first = self.first_queued
        queued = [] if first is None else [first]
        return min((paced.promoted for paced in [*self.running, *queued]), default=math.inf)


@dataclass(frozen=True, slots=True)
class Line:
    """vLLM's requests in order, as they are `seen` here: looked up anew whenever somebody goes through them, and no further."""

    requests: tuple[Iterable[Any], ...]
    seen: Callable[[Iterable[Any]], Iterator[Paced]]

    def __iter__(self) -> Iterator[Paced]:
        return self.seen(chain.from_iterable(self.requests))


@dataclass(frozen=True, slots=True)
class Queues:
    """The requests of a node that are in no batch, by their class."""

    interactive: Interactive
    batch: Batch
