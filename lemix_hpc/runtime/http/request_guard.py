"""What a client sends: who it is, what it may do, and as much of a body as is taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from lemix_hpc.config.api_keys import Right
from lemix_hpc.runtime.http.errors import forbidden, too_large, too_much, too_slow, unauthorised
from lemix_hpc.runtime.http.keys import Key, KeyRing
from lemix_hpc.runtime.http.munge import LONGEST, PREFIX, MungeUsers

if TYPE_CHECKING:
    from starlette.requests import Request

BODY_S = 120.0
"""How long a body may take to come."""
_KNOWN = "lemix.known"
MOST_UNDECODED = 64
MOST_READ = 256 << 20
"""Bytes of bodies that are on their way in at the same time."""


class CloseToStrangers:
    """Around an ASGI application: a connection whose request has shown no key ends with the answer.

    Who may not come in can so not ask one thing after the other without having to connect for each.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_on(message: Any) -> None:
            if message["type"] == "http.response.start" and _KNOWN not in scope:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive, send_on)


class Guard:
    """Checks keys, rights and sizes, in the server's thread."""

    def __init__(
        self, keys: KeyRing, max_body_mb: float, *, body_s: float = BODY_S, munge: MungeUsers | None = None
    ) -> None:
        self.keys = keys
        self._munge = munge
        # Decoding waits for another process; one at a time, and only so many wait for that.
        self._decoding = ThreadPoolExecutor(1, thread_name_prefix="http-munge")
        self._undecoded = 0
        self._limit_mb = max_body_mb
        self._body_s = body_s
        self._read = 0

    async def check_key(self, request: Request, right: Right) -> Key:
        """Whose key it is. Raises ApiError for one that is wrong, or may not do this, or has done too much of late."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        key = await self._find(given.strip().encode("latin-1")) if scheme.lower() == "bearer" else None
        if key is None or right not in key.rights:
            error = unauthorised() if key is None else forbidden(right)
            self.keys.refused[error.status] += 1
            raise error
        request.scope[_KNOWN] = True
        self.keys.take_request(key)
        return key

    async def _find(self, given: bytes) -> Key | None:
        if self._munge is None or not given.startswith(PREFIX) or len(given) > LONGEST:
            return self.keys.find(given)
        if self._undecoded >= MOST_UNDECODED:
            raise too_much("Too many credentials are being decoded.")
        self._undecoded += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._decoding, self._munge.find, given)
        finally:
            self._undecoded -= 1

    async def body(self, request: Request) -> bytes:
        """The whole body. Raises ApiError for one that is too large, before it has been taken in, or too slow."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_s):
                async for piece in self.pieces(request, self._limit_mb):
                    body += piece
                    self._read += len(piece)
                    if self._read > MOST_READ:
                        raise too_much("Too many large requests come at the same time.")
        except TimeoutError:
            raise too_slow(self._body_s) from None
        finally:
            self._read -= len(body)
        return bytes(body)

    async def pieces(self, request: Request, limit_mb: float) -> AsyncGenerator[bytes, None]:
        """The body as it comes. Raises ApiError as soon as it is known to be too large."""
        limit, size = int(limit_mb * 1e6), 0
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced[:20]) > limit:
            raise too_large(limit_mb)
        async for piece in request.stream():
            size += len(piece)
            if size > limit:
                raise too_large(limit_mb)
            yield piece
