"""The answers that clients were given last, so that a call that comes again gets the same one."""

from __future__ import annotations

from collections.abc import Iterator

from lemix_hpc.records.journal import Answered

MOST = 1024
MOST_BYTES = 64 << 20
LONGEST = 1 << 20
"""Bytes of an answer; a longer one is not kept."""


class LastAnswers:
    """By the client's own name for its call. The newest `MOST` are kept, of no more than `MOST_BYTES` in all."""

    def __init__(self) -> None:
        self._answers: dict[str, Answered] = {}
        self._nbytes = 0

    def __iter__(self) -> Iterator[Answered]:
        """The oldest first."""
        return iter(self._answers.values())

    def get(self, id: str) -> Answered | None:
        return self._answers.get(id)

    def add(self, answer: Answered) -> None:
        """The newest one. It takes the place of an earlier one to the same name."""
        self._drop(answer.id)
        self._answers[answer.id] = answer
        self._nbytes += len(answer.body)
        while len(self._answers) > MOST or self._nbytes > MOST_BYTES:
            self._drop(next(iter(self._answers)))

    def _drop(self, id: str) -> None:
        old = self._answers.pop(id, None)
        if old is not None:
            self._nbytes -= len(old.body)
