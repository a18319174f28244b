"""Ordered, non-blocking messages over MPI, with a tensor attached where there is one.

Every part of a run (scheduler, leader, stage) has an inbox of its own, told apart by tag, so that the scheduler and the
first leader can share a rank. Messages from one sender arrive in the order they were sent, each whole: its payload, too,
has arrived when `poll` hands it out. Nothing here ever blocks.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import msgspec

from lemix_hpc.engines.protocol import Payload
from lemix_hpc.runtime.transport.doorbell import Doorbell
from lemix_hpc.runtime.transport.messages import AnyMessage

if TYPE_CHECKING:
    from mpi4py import MPI


class Inbox(IntEnum):
    """The tags of the kinds of inbox; payloads travel under the tag plus `PAYLOAD`."""

    SCHEDULER = 1
    LEADER = 2
    STAGE = 3
    CLOCK = 4


PAYLOAD = 16
UNASKED_S = 20e-3
"""For so long MPI is not asked for mail that no ring has told of."""
MANY_RINGS = 8
"""Linux keeps 10 datagrams for a socket (net.unix.max_dgram_qlen), and drops others."""


class _Frame(msgspec.Struct, frozen=True, array_like=True):
    message: AnyMessage
    shape: tuple[int, ...] | None = None
    dtype: str = ""
    nbytes: int = 0


def host_memory(nbytes: int) -> memoryview:
    """Plain memory for a payload."""
    return memoryview(bytearray(nbytes))


@dataclass(frozen=True, slots=True)
class Mail:
    """A message that has arrived."""

    source: int
    message: AnyMessage
    payload: Payload | None


@dataclass(frozen=True, slots=True, eq=False)
class _Leaving:
    """`data` must stay as it is until MPI has sent it."""

    request: MPI.Request
    data: Any
    rank: int
    inbox: Inbox


@dataclass(slots=True)
class _Arriving:
    mail: Mail
    request: MPI.Request | None


class Mailbox:
    """One part's inbox, and its way to the inboxes of others.

    `allocate(nbytes)` gives the memory that payloads are received in. Where all others can ring the bell, MPI is asked only for
    as many messages as there were rings, unless it has something to move: on a crowded host a question in vain gives the core
    away, and with it some milliseconds.
    """

    def __init__(
        self, comm: MPI.Comm, inbox: Inbox, bell: Doorbell, allocate: Callable[[int], Any] = host_memory
    ) -> None:
        from mpi4py import MPI

        self._comm = comm
        self._any = MPI.ANY_SOURCE
        self._status = MPI.Status()
        self._inbox = inbox
        self._bell = bell
        self._allocate = allocate
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(_Frame)
        self._sending: list[_Leaving] = []
        self._arriving: dict[int, deque[_Arriving]] = {}
        self._heard = self._heard_all = 0
        self._asked = -math.inf

    def send(self, rank: int, inbox: Inbox, message: AnyMessage, payload: Payload | None = None) -> None:
        """Send and return at once. The payload's memory must stay unchanged until `sent_all`."""
        tensor = (payload.shape, payload.dtype, payload.nbytes) if payload is not None else ()
        data = self._encoder.encode(_Frame(message, *tensor))
        self._sending.append(_Leaving(self._comm.Isend(data, rank, inbox), data, rank, inbox))
        if payload is not None and payload.nbytes:
            request = self._comm.Isend(payload.data, rank, inbox + PAYLOAD)
            self._sending.append(_Leaving(request, payload, rank, inbox))
        self._sending = [leaving for leaving in self._sending if not leaving.request.Test()]
        self._bell.ring(rank, inbox)

    @property
    def sent_all(self) -> bool:
        """Whether everything sent has left its memory."""
        if self._sending:
            left = [leaving for leaving in self._sending if leaving.request.Test()]
            self._sending = [leaving for leaving in self._sending if leaving not in left]
            for leaving in left:
                self._bell.ring(leaving.rank, leaving.inbox)
        return not self._sending

    @property
    def in_transit(self) -> bool:
        """Whether MPI still has something to move for this mailbox."""
        return bool(self._sending or self._arriving)

    def poll(self) -> list[Mail]:
        """Everything that has arrived since the last call, in order per sender."""
        _ = self.sent_all
        arrived: list[Mail] = []
        left = self._expected()
        while left > 0 and (found := self._probe() or self._probe()) is not None:
            left -= 1
            self._receive(found, arrived)
        for source in list(self._arriving):
            self._deliver(source, arrived)
        return arrived

    def _expected(self) -> float:
        """For how many messages to ask MPI, at most. Now and then, and after so many rings that some may be lost, for all
        there are."""
        self._bell.look()
        all_rings, rings, now = self._bell.rings.total(), self._bell.rings[self._inbox], time.monotonic()
        lost, self._heard_all = all_rings - self._heard_all >= MANY_RINGS, all_rings
        rung, self._heard = rings - self._heard, rings
        if self._bell.remote or self.in_transit or lost or now >= self._asked + UNASKED_S:
            self._asked = now
            return math.inf
        return rung

    def _probe(self) -> MPI.Message | None:
        """One look. Open MPI looks before it moves what has come in, so only a second look sees what just came."""
        found: MPI.Message | None = self._comm.Improbe(self._any, self._inbox, self._status)
        return found

    def _receive(self, found: MPI.Message, arrived: list[Mail]) -> None:
        source = self._status.Get_source()
        data = bytearray(self._status.Get_count())
        found.Recv(data)
        frame = self._decoder.decode(data)
        if frame.shape is None and source not in self._arriving:
            arrived.append(Mail(source, frame.message, None))
            return
        payload = request = None
        if frame.shape is not None:
            memory = self._allocate(frame.nbytes)
            payload = Payload(frame.shape, frame.dtype, memory)
            if frame.nbytes:
                request = self._comm.Irecv(memory, source, self._inbox + PAYLOAD)
        mail = Mail(source, frame.message, payload)
        self._arriving.setdefault(source, deque()).append(_Arriving(mail, request))

    def _deliver(self, source: int, arrived: list[Mail]) -> None:
        queue = self._arriving[source]
        while queue and (queue[0].request is None or queue[0].request.Test()):
            arrived.append(queue.popleft().mail)
        if not queue:
            del self._arriving[source]
