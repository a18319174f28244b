"""What a client sends: who it is, and as much of a body as is taken."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

from lemix_hpc.runtime.http.errors import too_large, unauthorised

if TYPE_CHECKING:
    from starlette.requests import Request


class Guard:
    """Checks keys and sizes. `api_key` None: everybody may come in."""

    def __init__(self, api_key: str | None, max_body_mb: float) -> None:
        self._key = None if api_key is None else _digest(api_key.encode())
        self._limit_mb = max_body_mb

    def check_key(self, request: Request) -> None:
        """Raises ApiError for a wrong key. Takes the same time for every key."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        given = _digest(key.strip().encode("latin-1") if scheme.lower() == "bearer" else b"")
        if self._key is not None and not hmac.compare_digest(given, self._key):
            raise unauthorised()

    async def body(self, request: Request) -> bytes:
        """The whole body. Raises ApiError for one that is too large, before it has been taken in."""
        limit = int(self._limit_mb * 1e6)
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > limit:
            raise too_large(self._limit_mb)
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > limit:
                raise too_large(self._limit_mb)
        return bytes(body)


def _digest(key: bytes) -> bytes:
    # Of one length, so that the comparison does not tell that of the key.
    return hashlib.sha256(key).digest()
