"""Sums over nodes on one stage: the ring's work in pieces, and its parts on their way to the same stage of the next node."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lemix_hpc.engines.protocol import Payload, StageEngine, Vector, Work
from lemix_hpc.records.schema import SpanKind
from lemix_hpc.run_setup.scheduler_setup import Partners
from lemix_hpc.runtime.stage.links import StageLinks
from lemix_hpc.runtime.stage.ring_allreduce import Ring, RingChunk
from lemix_hpc.runtime.stage.work_items import Pass
from lemix_hpc.runtime.transport import messages as m


@dataclass(frozen=True, slots=True)
class Sum:
    """One round on this stage, from the time it was asked for [s]: what it gave, and what came out."""

    round: int
    since: float
    own: Vector
    total: Vector


class Reduction:
    """This stage's place in the ring. One round at a time; `done` gets its outcome and returns what there is to do with it."""

    def __init__(self, partners: Partners, links: StageLinks, engine: StageEngine, now: Callable[[], float]) -> None:
        position = partners.nodes.index(links.place.node)
        self._kind: SpanKind = "step" if partners.mode == "sync" else "copy"
        self._next = partners.nodes[(position + 1) % len(partners.nodes)]
        self._ring = Ring(position, len(partners.nodes))
        self._links = links
        self._engine = engine
        self._now = now
        self._jobs: deque[Work[None]] = deque()
        self._ready_since = 0.0
        self._finish: Callable[[Vector], Work[None]] | None = None
        self._rounds = 0
        self._sent = 0
        self._collective = partners.collective
        self._leaving = False
        self._last_came = False

    def begin(self, read: Callable[[Vector], Work[None]], done: Callable[[Sum], Work[None]]) -> None:
        """Ask for the sum of what `read` writes here and on the other nodes."""
        self._begin(self._engine.parameters, read, done)

    def meet(self, done: Callable[[Sum], Work[None]]) -> None:
        """Ask for a sum of nothing, whose end says that all nodes have begun the round."""
        self._begin(0, _nothing, done)

    def _begin(self, length: int, read: Callable[[Vector], Work[None]], done: Callable[[Sum], Work[None]]) -> None:
        own, since, number = np.empty(length, dtype=np.float32), self._now(), self._rounds
        self._rounds += 1
        self._wake()
        self._finish = lambda total: done(Sum(number, since, own, total))
        self._jobs.append(self._contribute(own, read))

    def feed(self, part: m.RingPart, payload: Payload | None) -> None:
        """A part has come from the node before."""
        assert payload is not None, "parts have values"
        if self._leaving:
            return
        self._wake()
        self._ring.feed(RingChunk(part.round, part.index, part.hops, _on_host(payload.data)))

    @property
    def since(self) -> float:
        """Since when there is work [s]; inf without any."""
        return self._ready_since if not self._leaving and (self._jobs or self._ring.ready) else math.inf

    def take(self) -> Pass:
        """All the work that there is, and that comes while it is under way."""
        return Pass(self._kind, self._work(), lambda _: None, [])

    def report(self, ended: Sum) -> None:
        """Tell the scheduler that the outcome of a round is in force here."""
        place, sent = self._links.place, self._sent
        self._sent = 0
        self._links.to_leader(m.RingDone(place.node, place.stage, ended.round, ended.since, self._now(), sent))

    def sent_by_itself(self, nbytes: int) -> None:
        """The engine has given so many bytes to a sum of its own."""
        self._sent += nbytes

    def leave(self) -> bool:
        """The run ends: drop the round that is open, if any, and tell the next node that nothing more comes. Whether the node
        before has told so, too: a rank must take in everything that others send it before it ends.

        A round behind which engines sum by themselves is dropped only once it cannot end any more, as the node before has left
        it. For a node that has seen its end waits for all others; and if one sees it, all do, since nobody leaves before.
        """
        if not self._leaving and not self._committed:
            self._leaving = True
            self._links.across(self._next, m.RingLast())
        return self._leaving and self._last_came

    @property
    def _committed(self) -> bool:
        """Whether other nodes may count on this one."""
        return self._collective and bool(self._jobs or (self._ring.open and not self._last_came))

    def last_came(self) -> None:
        """The node before sends nothing more."""
        self._last_came = True

    def _wake(self) -> None:
        if self.since == math.inf:
            self._ready_since = self._now()

    def _contribute(self, own: Vector, read: Callable[[Vector], Work[None]]) -> Work[None]:
        yield from read(own)
        self._ring.begin(own)

    def _work(self) -> Work[None]:
        while self._jobs or self._ring.ready:
            if self._jobs:
                yield from self._jobs.popleft()
            else:
                self._advance_ring()
            yield

    def _advance_ring(self) -> None:
        part = self._ring.advance()
        if part is not None:
            payload = Payload(part.values.shape, "float32", part.values)
            self._sent += payload.nbytes
            self._links.across(self._next, m.RingPart(part.round, part.index, part.hops), payload)
        if self._ring.complete:
            assert self._finish is not None, "a round was asked for"
            self._jobs.append(self._finish(self._ring.take()))


def _nothing(into: Vector) -> Work[None]:  # noqa: ARG001
    yield from ()


def _on_host(data: Any) -> Vector:
    """Received memory as a vector: host memory as it is, a device's (where MPI sends from there) as a copy."""
    host = data.cpu().numpy() if hasattr(data, "cpu") else data
    return np.frombuffer(host, dtype=np.float32)
