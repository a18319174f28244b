"""The two kinds of work: requests to serve and micro-batches to train on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Request:
    """One inference request.

    `arrival` is in seconds from the start of the run. `tokens` is empty where only lengths matter (emulated stages);
    otherwise it has `prompt_tokens` entries. `output_tokens` is 0 for prompt scoring. A request that comes `after` another,
    given by its id, comes `think_s` seconds after the answer to that one, whatever its `arrival`.
    """

    id: str
    arrival: float
    prompt_tokens: int
    output_tokens: int
    tokens: tuple[int, ...] = ()
    after: str | None = None
    think_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """One micro-batch: `rows` sequences of `length` tokens.

    `tokens` and `labels` are int32 in C order, (rows, length), as bytes; empty where only sizes matter. A label is the
    token at the same position, or -100 where no loss is taken (padding, prompts): the shift by one is the engine's.
    """

    id: str
    rows: int
    length: int
    tokens: bytes = b""
    labels: bytes = b""
