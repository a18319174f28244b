"""A client's call, between the endpoint's thread and the scheduler's loop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from lemix_hpc.policy.classes import ServiceClass
from lemix_hpc.runtime.http.errors import ApiError
from lemix_hpc.workload.tasks import ApiCall

Headers = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class ResponsePart:
    """A piece of an answer, in order; status 0 and no headers in all but the first."""

    status: int
    headers: Headers
    body: bytes
    more: bool


class Client(Protocol):
    """Who waits for the answer to a call. The scheduler's loop calls `part` until one has no `more`, or `fail`, once.

    `number`: its task, once it is one. `unhurried`: waits in a queue as long as the node works at all; `patient`: even until
    the next attempt.
    """

    number: int | None

    @property
    def unhurried(self) -> bool: ...

    @property
    def patient(self) -> bool: ...

    def part(self, part: ResponsePart) -> None: ...

    def fail(self, error: ApiError) -> None: ...


class PartTaker(Protocol):
    """Takes down the answer to a call, in the scheduler's loop."""

    def part(self, part: ResponsePart, number: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Gone:
    """The client has hung up."""


class Call:
    """Made and awaited in the endpoint's thread, answered from the scheduler's loop.

    `lengths`: tokens of prompt and answer of a call that generates, which the policy sends to a node; any other goes to
    `node`. `arrived` in seconds of the run. `service`: its class. `number`: its task, for the scheduler's loop. `recording`:
    what takes down its answer, if that is wanted.
    """

    def __init__(
        self,
        id: str,
        api: ApiCall,
        arrived: float,
        lengths: tuple[int, int] | None,
        node: int = 0,
        recording: PartTaker | None = None,
        service: ServiceClass = "interactive",
    ) -> None:
        self.id = id
        self.api = api
        self.arrived = arrived
        self.lengths = lengths
        self.node = node
        self.service = service
        self._recording = recording
        self.number: int | None = None
        self.gone = False
        self.unhurried = service == "batch"
        self.patient = False
        self._loop = asyncio.get_running_loop()
        self._parts: asyncio.Queue[ResponsePart | ApiError | Gone] = asyncio.Queue()

    def part(self, part: ResponsePart) -> None:
        if self._recording is not None:
            assert self.number is not None, "it is a task"
            self._recording.part(part, self.number)
        self._loop.call_soon_threadsafe(self._parts.put_nowait, part)

    def fail(self, error: ApiError) -> None:
        self._loop.call_soon_threadsafe(self._parts.put_nowait, error)

    def hang_up(self) -> None:
        """In the endpoint's thread: nobody reads on."""
        self.gone = True
        self._parts.put_nowait(Gone())

    async def next(self) -> ResponsePart | ApiError | Gone:
        """In the endpoint's thread: what comes next."""
        return await self._parts.get()
