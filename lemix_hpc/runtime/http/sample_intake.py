"""Training samples from clients: checked, written down, and only then accepted."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from lemix_hpc.config.workload_section import TextFields
from lemix_hpc.records.attempts import Attempt
from lemix_hpc.records.line_chain import CountedFile
from lemix_hpc.records.schema import SAMPLES
from lemix_hpc.runtime.http.errors import ApiError, bad_request, reused, too_much
from lemix_hpc.workload.samples import Sample, SampleQueue, parse_samples
from lemix_hpc.workload.tasks import digest as digest_of
from lemix_hpc.workload.texts import Conversation, Document

MOST_AT_ONCE = 10_000
"""Lines of one call."""
MOST_WAITING = 100_000
"""Samples that wait to be trained on, after which no more are taken."""
MOST_KNOWN = 10_000
"""The last calls with a name, which are known should they come again."""


class _Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of the journal. `received` in seconds of the run; `tasks.jsonl` says in which micro-batches the sample is.

    `request`: the client's own name for the call that brought it with others, `of` in all; `digest`: of what it sent; `key`:
    the name of its key.
    """

    id: str
    received: float
    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    request: str | None = None
    digest: str | None = None
    of: int = 0
    key: str = ""
    messages: tuple[dict[str, Any], ...] | None = None
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def document(self) -> Document | Conversation:
        if self.messages is not None:
            return Conversation(self.messages, self.tools)
        return Document(self.prompt or "", self.text if self.text is not None else self.completion or "")


class _Call(msgspec.Struct, frozen=True):
    """A call that has been acknowledged: so many samples, numbered from the first."""

    digest: str
    first: int
    count: int

    @property
    def ids(self) -> list[str]:
        return [_id(self.first + position) for position in range(self.count)]


class SampleIntake:
    """`take` is for one thread at a time. `wake` is called when there is something new to train on.

    `posted`: the samples that earlier attempts took, which are in the files `before`; they are not in the queue.
    """

    def __init__(
        self,
        attempt: Attempt,
        fields: TextFields,
        queue: SampleQueue,
        wake: Callable[[], None],
        before: Sequence[CountedFile] = (),
    ) -> None:
        self._attempt = attempt
        self._journal = (attempt.path / SAMPLES).open("ab", buffering=0)
        attempt.publish(SAMPLES)
        self._fields = fields
        self._queue = queue
        self._wake = wake
        entries = [msgspec.json.decode(line, type=_Entry) for file in before for line in file.lines()]
        self.posted = [Sample(entry.id, queue.tokenised(entry.document)) for entry in entries]
        self._count = len(entries)
        self._acknowledged: dict[str, _Call] = {}
        for number, entry in enumerate(entries):
            if entry.request is not None and entry.digest is not None and entry.request not in self._acknowledged:
                self._know(entry.request, _Call(entry.digest, number, entry.of))

    def take(self, body: bytes, now: float, name: str | None = None, key: str = "") -> list[str]:
        """Accept all samples of a body and return their ids, or none. Raises ApiError naming the line and the reason.

        `name`: the client's own, by which a call that comes again is known: it is acknowledged again, and nothing is taken.
        `key`: the name of its key.
        """
        digest = digest_of("samples", body)
        if name is not None and (known := self._acknowledged.get(name)) is not None:
            if known.digest != digest:
                raise reused(name)
            return known.ids
        if self._queue.closed:
            raise ApiError(409, "Training has ended. Nothing was taken.", "invalid_request_error")
        if body.count(b"\n") >= MOST_AT_ONCE:
            raise bad_request(
                f"There are more than {MOST_AT_ONCE} lines; send them in several calls. Nothing was taken."
            )
        if self._queue.pending >= MOST_WAITING:
            raise too_much(f"{self._queue.pending} samples wait to be trained on. Nothing was taken.")
        try:
            documents = parse_samples(body, self._fields)
        except ValueError as error:
            raise bad_request(f"{error}. Nothing was taken.") from error
        samples: list[Sample] = []
        for line, document in documents:
            try:
                samples.append(Sample(_id(self._count + len(samples)), self._queue.tokenised(document)))
            except ValueError as error:
                raise bad_request(f"line {line}: {error}. Nothing was taken.") from error
        ids = [sample.id for sample in samples]
        call = (name, digest, len(ids), key) if name is not None else (None, None, 0, key)
        self._write([_entry(id, now, document, *call) for id, (_, document) in zip(ids, documents, strict=True)])
        # Whoever goes on with the run has read the journal since then, or reads it after this.
        if self._attempt.superseded:
            raise ApiError(503, "The run goes on elsewhere. Send the samples there.", "service_unavailable_error")
        if name is not None:
            self._know(name, _Call(digest, self._count, len(ids)))
        self._count += len(samples)
        self._queue.add(samples)
        self._wake()
        return ids

    def close(self) -> None:
        self._journal.close()

    def _know(self, name: str, call: _Call) -> None:
        self._acknowledged[name] = call
        if len(self._acknowledged) > MOST_KNOWN:
            del self._acknowledged[next(iter(self._acknowledged))]

    def _write(self, entries: list[_Entry]) -> None:
        """Onto the disk as a whole, or not at all."""
        end = os.fstat(self._journal.fileno()).st_size
        try:
            content = b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries)
            while content:
                content = content[self._journal.write(content) :]
            os.fsync(self._journal.fileno())
        except OSError as error:
            os.ftruncate(self._journal.fileno(), end)
            message = f"The samples cannot be written down ({error.strerror}). Nothing was taken."
            raise ApiError(507, message, "server_error") from error


def _id(number: int) -> str:
    """Of a sample, by how many the run has taken before it."""
    return f"sample{number}"


def _entry(
    id: str,
    now: float,
    document: Document | Conversation,
    request: str | None,
    digest: str | None,
    of: int,
    key: str,
) -> _Entry:
    if isinstance(document, Conversation):
        said, tools = document.messages, document.tools
        return _Entry(id, now, request=request, digest=digest, of=of, key=key, messages=said, tools=tools)
    if document.prompt:
        return _Entry(id, now, None, document.prompt, document.text, request, digest, of, key)
    return _Entry(id, now, document.text, request=request, digest=digest, of=of, key=key)
