"""An answer on its way to the client, as it comes from the node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from lemix_hpc.runtime.http.call import Call, Gone, Headers
from lemix_hpc.runtime.http.errors import ApiError
from lemix_hpc.runtime.http.server import HttpServer

_OF_ONE_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
_FOR_NODES = frozenset(("accept", "content-type", "traceparent", "tracestate"))


def for_node(headers: Headers) -> tuple[tuple[str, str], ...]:
    """What a node gets of a client's headers: not the API key, nor what would tell its server whom to serve first."""
    return tuple((name, value) for name, value in headers if name in _FOR_NODES)


def for_client(headers: Iterable[tuple[str, str]], id: str) -> list[tuple[bytes, bytes]]:
    """What a client gets of a node's headers, with the name of its call, encoded."""
    named = [(n.lower(), v) for n, v in headers if n.lower() not in _OF_ONE_HOP | {"x-request-id"}]
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (*named, ("x-request-id", id))]


class Relay:
    """An ASGI application that answers one call: its parts byte for byte as they come. The call must have entered.

    Client gone: the call is given up. `over` is called when nobody waits any more.
    """

    def __init__(self, server: HttpServer, call: Call, over: Callable[[], None] = lambda: None) -> None:
        self._server = server
        self._call = call
        self._over = over
        self._started = False
        self._events = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG002
        watch = asyncio.create_task(self._watch(receive))
        answered = False
        try:
            answered = await self._send_on(send)
        finally:
            watch.cancel()
            self._server.leave(self._call, answered=answered)
            self._over()

    async def _watch(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._call.hang_up()

    async def _send_on(self, send: Any) -> bool:
        """Whether the node's part is over: it has sent the last one, or was given up on by the scheduler."""
        while True:
            part = await self._call.next()
            if isinstance(part, Gone):
                return False
            if isinstance(part, ApiError):
                await self._send_error(part, send)
                return True
            if part.status:
                await self._start(part.status, part.headers, send)
            await send({"type": "http.response.body", "body": part.body, "more_body": part.more})
            if not part.more:
                return True

    async def _start(self, status: int, headers: Headers, send: Any) -> None:
        encoded = for_client(headers, self._call.id)
        self._started = True
        self._events = any(n == b"content-type" and b"event-stream" in v for n, v in encoded)
        await send({"type": "http.response.start", "status": status, "headers": encoded})

    async def _send_error(self, error: ApiError, send: Any) -> None:
        """An answer that has begun can only be ended by an event, or else cut off: the server does that to incomplete ones."""
        if not self._started:
            await self._start(error.status, error.headers, send)
            await send({"type": "http.response.body", "body": error.body})
        elif self._events:
            await send({"type": "http.response.body", "body": b"data: " + error.body + b"\n\n"})
