"""Ordered, non-blocking messages over MPI, with a tensor attached where there is one.

Every part of a run (scheduler, leader, stage) has an inbox of its own, told apart by tag, so that the scheduler and the
first leader can share a rank. Messages from one sender arrive in the order they were sent, each whole: its payload, too,
has arrived when `poll` hands it out. Nothing here ever blocks.
"""

from __future__ import annotations

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
    """The tags of the three kinds of inbox; payloads travel under the tag plus `PAYLOAD`."""

    SCHEDULER = 1
    LEADER = 2
    STAGE = 3


PAYLOAD = 16


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


@dataclass(slots=True)
class _Arriving:
    mail: Mail
    request: MPI.Request | None


class Mailbox:
    """One part's inbox, and its way to the inboxes of others.

    `allocate(nbytes)` gives the memory that payloads are received in.
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
        self._sending: list[tuple[MPI.Request, Any]] = []
        self._arriving: dict[int, deque[_Arriving]] = {}

    def send(self, rank: int, inbox: Inbox, message: AnyMessage, payload: Payload | None = None) -> None:
        """Send and return at once. The payload's memory must stay unchanged until `sent_all`."""
        tensor = (payload.shape, payload.dtype, payload.nbytes) if payload is not None else ()
        data = self._encoder.encode(_Frame(message, *tensor))
        self._sending.append((self._comm.Isend(data, rank, inbox), data))
        if payload is not None and payload.nbytes:
            self._sending.append((self._comm.Isend(payload.data, rank, inbox + PAYLOAD), payload))
        self._bell.ring(rank)

    @property
    def sent_all(self) -> bool:
        """Whether everything sent has left its memory."""
        self._sending = [sending for sending in self._sending if not sending[0].Test()]
        return not self._sending

    @property
    def in_transit(self) -> bool:
        """Whether MPI still has something to move for this mailbox."""
        return bool(self._sending or self._arriving)

    def poll(self) -> list[Mail]:
        """Everything that has arrived since the last call, in order per sender."""
        if self._sending:
            _ = self.sent_all
        arrived: list[Mail] = []
        while (found := self._probe() or self._probe()) is not None:
            self._receive(found, arrived)
        for source in list(self._arriving):
            self._deliver(source, arrived)
        return arrived

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
