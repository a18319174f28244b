"""Call a web application in this process, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote, urlsplit

Headers = list[tuple[str, str]]
Message = MutableMapping[str, Any]
App = Callable[..., Awaitable[None]]
BROKEN: tuple[int, Headers, bytes, bool] = (
    500,
    [("content-type", "application/json")],
    b'{"error":{"message":"Internal error of the model\'s server; the log of its node has the details.",'
    b'"type":"server_error","param":null,"code":null}}',
    False,
)
"""The answer to a call that an application failed in before it had answered."""
Respond = Callable[[int, Headers, bytes, bool], None]
"""Takes one piece of the answer: status and headers (0 and none in all but the first), bytes, and whether more follows."""


async def call(
    app: App, method: str, target: str, headers: Headers, body: bytes, gone: asyncio.Event, respond: Respond
) -> None:
    """One HTTP request to an ASGI application; returns when it has answered. `gone`: the client has hung up.

    The status line waits for the first piece of the body, so that it can tell what was known by then.
    """
    parts = urlsplit(target)
    scope = {
        "type": "http",
        # From 2.4 on a streamed answer would only be given up when `send` fails, which it never does here.
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(parts.path),
        "raw_path": parts.path.encode(),
        "query_string": parts.query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        "client": None,
        "server": None,
        "state": {},
    }
    sent_body = False
    start: tuple[int, Headers] = (0, [])

    async def receive() -> Message:
        nonlocal sent_body
        if not sent_body:
            sent_body = True
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start":
            named = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in message.get("headers", ())]
            start = (message["status"], named)
        elif message["type"] == "http.response.body":
            status, known = start
            start = (0, [])
            respond(status, known, message.get("body", b""), message.get("more_body", False))

    await app(scope, receive, send)
