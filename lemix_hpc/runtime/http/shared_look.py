"""A look at all nodes that everybody who asks within a second shares: asking often costs no node anything."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

FRESH_S = 1.0


class SharedLook(Generic[T]):
    """For the server's thread alone. `look`: what is asked; one at a time, and its answer, or error, holds for `FRESH_S`."""

    def __init__(self, look: Callable[[], Awaitable[T]], now: Callable[[], float] = time.monotonic) -> None:
        self._look = look
        self._now = now
        self._task: asyncio.Task[T] | None = None
        self._until = 0.0
        self.asked = 0
        """How often somebody wanted it."""

    async def get(self) -> T:
        self.asked += 1
        if self._task is None or (self._task.done() and self._now() >= self._until):
            self._task = asyncio.get_running_loop().create_task(self._fresh())
        # Who stops waiting must not end it for the others.
        return await asyncio.shield(self._task)

    async def _fresh(self) -> T:
        try:
            return await self._look()
        finally:
            self._until = self._now() + FRESH_S
