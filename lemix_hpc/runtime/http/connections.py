"""Connections of clients: how many there may be, and how long each may take for its next request and with reading an answer.

Whoever connects is unknown until a whole head has come, so that nothing of it may cost much or last long.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from lemix_hpc.runtime.http.errors import ApiError, crowded, malformed

LOOK_S = 1.0
"""How often all connections are looked at."""
HEAD_S = 15.0
"""How long a connection may be without a request: until the first has come with all its headers, and from one to the next."""
READ_S = 60.0
"""How long a client may leave unread what was sent to it."""


@dataclass(slots=True)
class _Seen:
    """`cycle`: the request that the connection had at the last looks; `idle`: since when it has none that is under way, and
    `unread`: since when there is something for it to read, both in seconds of the loop's clock, None if that is not so."""

    cycle: object
    idle: float | None
    unread: float | None = None


class Connections:
    """All that are open, for the server's thread alone. `most` at a time: one without a request makes room for another."""

    def __init__(self, most: int, now: Callable[[], float]) -> None:
        self.most = most
        self._now = now
        self._seen: dict[GuardedProtocol, _Seen] = {}
        self.turned_away = 0
        """Connections that were closed for being slow, idle or too many."""

    def __len__(self) -> int:
        return len(self._seen)

    def opened(self, connection: GuardedProtocol) -> bool:
        """A client has connected. False if there is no room for it."""
        if len(self._seen) >= self.most and not self._make_room():
            self.turned_away += 1
            return False
        self._seen[connection] = _Seen(None, self._now())
        return True

    def closed(self, connection: GuardedProtocol) -> None:
        self._seen.pop(connection, None)

    def look(self) -> None:
        """Hang up on clients that have taken too long."""
        now = self._now()
        for connection, seen in list(self._seen.items()):
            if self._too_long(connection, seen, now):
                self.turned_away += 1
                connection.hang_up()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Look at all of them now and then."""

        async def watch() -> None:
            while True:
                await asyncio.sleep(LOOK_S)
                self.look()

        task = asyncio.get_running_loop().create_task(watch())
        try:
            yield
        finally:
            task.cancel()

    def _too_long(self, connection: GuardedProtocol, seen: _Seen, now: float) -> bool:
        if connection.busy:
            seen.idle = None
        elif seen.idle is None or seen.cycle is not connection.cycle:
            seen.idle = now
        seen.cycle = connection.cycle
        if not connection.unread:
            seen.unread = None
        elif seen.unread is None:
            seen.unread = now
        return (seen.idle is not None and now - seen.idle >= HEAD_S) or (
            seen.unread is not None and now - seen.unread >= READ_S
        )

    def _make_room(self) -> bool:
        """Hang up on the oldest connection that has never had a request, else on the oldest that has none now."""
        idle = (connection for connection in self._seen if not connection.busy)
        new = (connection for connection in self._seen if connection.cycle is None)
        connection = next(new, None) or next(idle, None)
        if connection is None:
            return False
        self.turned_away += 1
        connection.hang_up()
        self.closed(connection)
        return True


class GuardedProtocol(H11Protocol):
    """One connection. `guard` is set in a class of its own for each server, see `guarded_by`."""

    guard: Connections

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def unread(self) -> int:
        """Bytes that wait here until the client reads."""
        return self.transport.get_write_buffer_size()

    def hang_up(self) -> None:
        """At once, whatever has not been sent."""
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if not self.guard.opened(self):
            self._refuse(crowded())

    def connection_lost(self, exc: Exception | None) -> None:
        self.guard.closed(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, in the form of all errors."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(malformed(msg))
        else:
            self.hang_up()

    def _refuse(self, error: ApiError) -> None:
        named = [(name.encode(), value.encode()) for name, value in error.headers]
        close = [(b"content-length", str(len(error.body)).encode()), (b"connection", b"close")]
        reason = HTTPStatus(error.status).phrase.encode()
        head = h11.Response(status_code=error.status, headers=[*named, *close], reason=reason)
        events = (head, h11.Data(data=error.body), h11.EndOfMessage())
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()


def guarded_by(connections: Connections) -> type[GuardedProtocol]:
    """The protocol of a server whose connections these are."""
    return type("GuardedProtocol", (GuardedProtocol,), {"guard": connections})
