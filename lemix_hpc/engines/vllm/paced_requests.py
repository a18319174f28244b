"""vLLM's requests as the policy looks at them. Times are seconds of this host's monotonic clock."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Interactive:
    """Interactive requests with something to compute: those that run, and those that are queued, the first one first."""

    running: list[Paced]
    queued: list[Paced]

    @property
    def ready(self) -> list[Paced]:
        """Those that a batch has had before, also those whose cache was taken from them since."""
        return [*self.running, *(paced for paced in self.queued if paced.produced)]

    @property
    def waiting(self) -> Waiting:
        return Waiting.of([paced for paced in self.queued if not paced.produced])

    @property
    def first(self) -> Paced | None:
        return next(chain(self.running, self.queued), None)


@dataclass(slots=True)
class Batch:
    """Batch requests with something to compute: those that run, and those that are queued, of which there may be many: they are
    looked at once, and no more of them than are needed."""

    running: list[Paced]
    queued: Iterator[Paced]
    ready: list[Paced] = field(init=False)
    first_queued: Paced | None = field(init=False)

    def __post_init__(self) -> None:
        self.ready = [paced for paced in self.running if paced.decodes]
        self.first_queued = next(self.queued, None)
        if self.first_queued is not None:
            self.queued = chain([self.first_queued], self.queued)

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
        queued = [] if self.first_queued is None else [self.first_queued]
        return min((paced.promoted for paced in [*self.running, *queued]), default=math.inf)


@dataclass(frozen=True, slots=True)
class Queues:
    """The requests of a node that are in no batch, by their class."""

    interactive: Interactive
    batch: Batch
