"""The two kinds of work: requests to serve and micro-batches to train on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from lemix_hpc.policy.classes import ServiceClass


def digest(call: str, body: bytes) -> str:
    """Of a call of a client and what it sends, in hexadecimal."""
    return hashlib.sha256(call.encode() + b"\n" + body).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class ApiCall:
    """A call of the OpenAI API, for a node's own server to answer. `key`: the name of its client's; none in a batch.

    `answers`: how many are generated side by side, `n` for each of its prompts."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    key: str = ""
    answers: int = 1

    @property
    def digest(self) -> str:
        """Of what is asked, in hexadecimal: the same for the same call that comes again."""
        return digest(f"{self.method} {self.path}", self.body)


class Request(msgspec.Struct, frozen=True):
    """One inference request.

    `arrival` is in seconds from the start of the run. `tokens` is empty where only lengths matter (emulated stages);
    otherwise it has `prompt_tokens` entries. `output_tokens` is 0 for prompt scoring. If `after` has the id of another
    request, this one arrives `think_s` seconds after the answer to that one, whatever its `arrival`. A request with a `call`
    has no `tokens`; its lengths are those of `call_lengths`, of all its answers together. `service`: its class. `place`: among
    the requests of the workload, from 0, None for one of a client; `followed`: another may come `after` it.
    """

    id: str
    arrival: float
    prompt_tokens: int
    output_tokens: int
    tokens: tuple[int, ...] = ()
    after: str | None = None
    think_s: float = 0.0
    call: ApiCall | None = None
    service: ServiceClass = "interactive"
    place: int | None = None
    followed: bool = False

    @property
    def answers(self) -> int:
        """How many `output_tokens` is of, side by side."""
        return 1 if self.call is None else self.call.answers

    @property
    def answer_tokens(self) -> int:
        """Of one answer, in the mean."""
        return -(-self.output_tokens // self.answers)


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """One micro-batch: `rows` sequences of `length` tokens.

    `tokens` and `labels` are int32 in C order, (rows, length), as bytes; empty where only sizes matter. A label is the
    token at the same position, or -100 where no loss is taken (padding, prompts); the engine shifts them by one.
    `window`: that of the text that it is from, counted over all epochs, and the index of its first micro-batch. `samples`: ids
    of the clients' samples in it, when `came` of them had come in all; 0 for a micro-batch of the text.
    """

    id: str
    rows: int
    length: int
    tokens: bytes = b""
    labels: bytes = b""
    samples: tuple[str, ...] = ()
    window: tuple[int, int] = (0, 0)
    came: int = 0
