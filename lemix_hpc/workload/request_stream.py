"""Requests that are made as they are asked for, so that a run of days keeps only those that are under way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from lemix_hpc.workload.demand import Demand
from lemix_hpc.workload.tasks import Request


@dataclass(frozen=True)
class RequestStream:
    """Requests in order of arrival (later turns of a conversation right behind its first, in the order of their source).

    `make`: makes those from a place on, counted from 0; with their tokens, or only lengths. Each time it makes the same ones.
    """

    make: Callable[[int, bool], Iterator[Request]]

    @staticmethod
    def of(requests: Sequence[Request]) -> RequestStream:
        """Of requests that are in memory."""
        return RequestStream(lambda start, filled: islice(requests, start, None))  # noqa: ARG005

    @cached_property
    def demand(self) -> Demand:
        """What all of them ask for."""
        return Demand.of(self.lengths())

    def __len__(self) -> int:
        return self.demand.count

    def __iter__(self) -> Iterator[Request]:
        return self.make(0, True)

    def behind(self, done: int) -> Iterator[Request]:
        """Without the first so many."""
        return self.make(done, True)

    def lengths(self) -> Iterator[Request]:
        """All of them without tokens."""
        return self.make(0, False)
