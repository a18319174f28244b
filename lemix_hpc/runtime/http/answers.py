"""`X-Request-Id` as an idempotency key: a call that comes again is given the answer that it was given before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from lemix_hpc.records.journal import Accepted, Answered, Record
from lemix_hpc.records.last_answers import LONGEST, LastAnswers
from lemix_hpc.runtime.http.call import ResponsePart
from lemix_hpc.runtime.http.errors import reused, under_way

REPLAYED = (b"x-lemix-replayed", b"true")


class Answers:
    """Of calls that clients have named. `begin` and `end` are for the server's thread, a `Recording` for the scheduler's loop.

    `given`: answers of earlier attempts; `waiting`: calls that these have accepted and not answered.
    """

    def __init__(self, given: Iterable[Answered], waiting: Iterable[Accepted]) -> None:
        self._lock = threading.Lock()
        self._last = LastAnswers()
        for answer in given:
            self._last.add(answer)
        self._digests = {accepted.id: accepted.digest for accepted in waiting if accepted.digest}
        self._under_way: set[str] = set()
        self.promise: Callable[[Record], None] = lambda record: None  # noqa: ARG005
        """Where answers are written down."""

    def begin(self, id: str, digest: str) -> Answered | None:
        """A call has come: the answer that it was given before, or None, and then it must `end`.

        Raises ApiError if another call has this name, or it is being answered now.
        """
        with self._lock:
            answer = self._last.get(id)
            known = answer.digest if answer is not None else self._digests.get(id, digest)
            if known != digest:
                raise reused(id)
            if answer is not None:
                return answer
            if id in self._under_way:
                raise under_way(id)
            self._under_way.add(id)
            self._digests[id] = digest
            return None

    def end(self, id: str) -> None:
        """Nobody waits for the answer to a call any more."""
        with self._lock:
            self._under_way.discard(id)
            self._digests.pop(id, None)

    def keep(self, answer: Answered) -> None:
        """Before the last of it goes to the client."""
        self.promise(answer)
        with self._lock:
            self._last.add(answer)


class Recording:
    """Collects the answer to one call. An error of the server's side is none: the call may be tried again."""

    def __init__(self, answers: Answers, id: str, digest: str, now: Callable[[], float]) -> None:
        self._answers = answers
        self._id = id
        self._digest = digest
        self._now = now
        self._status = 0
        self._headers: list[tuple[str, str]] = []
        self._body = bytearray()

    def part(self, part: ResponsePart, number: int) -> None:
        """The next piece of the answer to a task."""
        if part.status:
            self._status, self._headers = part.status, part.headers
        if len(self._body) <= LONGEST:
            self._body += part.body
        if not part.more and self._status < 500 and len(self._body) <= LONGEST:
            self._answers.keep(
                Answered(
                    number, self._id, self._digest, self._now(), self._status, tuple(self._headers), bytes(self._body)
                )
            )


class Replay:
    """An ASGI application that gives an answer again: a stream event by event, anything else as a whole."""

    def __init__(self, answer: Answered, headers: list[tuple[bytes, bytes]]) -> None:
        self._answer = answer
        self._headers = [*headers, REPLAYED]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG002
        events = any(name == b"content-type" and b"event-stream" in value for name, value in self._headers)
        await send({"type": "http.response.start", "status": self._answer.status, "headers": self._headers})
        body = self._answer.body
        while events and (end := body.find(b"\n\n") + 2) > 1:
            await send({"type": "http.response.body", "body": body[:end], "more_body": True})
            body = body[end:]
        await send({"type": "http.response.body", "body": body, "more_body": False})
