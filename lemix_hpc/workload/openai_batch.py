"""Reader of OpenAI batch files: one completion or chat request per line, with its own text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from lemix_hpc.workload.lines import Findings, decode_json, numbered_lines, parsed
from lemix_hpc.workload.tokenizer import ChatTokenizer, Messages, Tokenizer
from lemix_hpc.workload.traces import MOST_TOKENS, TraceRow, checked_time

# OpenAI's own default of `max_tokens` for completions.
DEFAULT_OUTPUT_TOKENS = 16

# How long a text is taken to be where there is no tokenizer, as in the LMSYS-Chat length table.
_CHARACTERS_PER_TOKEN = 4


class _Part(msgspec.Struct):
    type: Literal["text"]
    text: str


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part]


_Tokens = Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)]


class _Body(msgspec.Struct):
    prompt: str | list[int] | None = None
    messages: list[_Message] | None = None
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    n: int | None = None


class _Line(msgspec.Struct):
    custom_id: Annotated[str, msgspec.Meta(min_length=1)]
    body: _Body
    timestamp: float | None = None


def read_openai_batch(
    path: Path, findings: Findings, *, tokenizer: Tokenizer | None, default_output_tokens: int, answer: bool
) -> Iterator[TraceRow]:
    """Requests in file order. Without a tokenizer `tokens` is empty, and the length of a text is an estimate.

    `default_output_tokens`: for lines without a limit. `answer`: whether chat prompts open the assistant's turn at the end.
    `timestamp` (seconds) is an addition to OpenAI's format: all lines have it or none, and without it every request comes
    at 0. An invalid line is left out and added to `findings`. Raises UserError if the file cannot be read or has no valid line.
    """
    expected = "an OpenAI batch file, JSON lines with `custom_id` and `body`"
    seen: set[str] = set()
    timed: bool | None = None

    def parse(text: str) -> TraceRow:
        nonlocal timed
        line = decode_json(text, _Line)
        if line.custom_id in seen:
            raise ValueError(f"custom_id {line.custom_id!r} was used before")
        if timed is not None and timed != (line.timestamp is not None):
            raise ValueError("`timestamp` must be on every line or on none")
        tokens, length = _prompt(line.body, tokenizer, answer=answer)
        timed = line.timestamp is not None
        seen.add(line.custom_id)
        limits = (line.body.max_completion_tokens, line.body.max_tokens, default_output_tokens)
        output = next(limit for limit in limits if limit is not None)
        return TraceRow(checked_time(line.timestamp or 0.0), length, output, line.custom_id, tokens)

    lines = numbered_lines(path, expected)
    for _, row in parsed(lines, parse, path=path, expected=expected, findings=findings):
        yield row


def _prompt(body: _Body, tokenizer: Tokenizer | None, *, answer: bool) -> tuple[tuple[int, ...], int]:
    """Token ids, or none without a tokenizer, and how many they are."""
    if (body.prompt is None) == (body.messages is None):
        raise ValueError("the body needs either `prompt` or `messages`")
    if not body.prompt and not body.messages:
        raise ValueError("the prompt is empty")
    if body.n not in (None, 1):
        raise ValueError(f"`n` is {body.n}, but only one answer per request is supported")
    if isinstance(body.prompt, list):
        return _checked_ids(body.prompt, tokenizer), len(body.prompt)
    messages = [{"role": message.role, "content": _content(message)} for message in body.messages or []]
    if tokenizer is None:
        text = body.prompt or _role_prefixed(messages, answer=answer)
        return (), math.ceil(len(text) / _CHARACTERS_PER_TOKEN)
    if messages and isinstance(tokenizer, ChatTokenizer):
        ids = tokenizer.encode_chat(messages, answer=answer)
    else:
        ids = tokenizer.encode(body.prompt or _role_prefixed(messages, answer=answer))
    return tuple(ids), len(ids)


def _checked_ids(ids: list[int], tokenizer: Tokenizer | None) -> tuple[int, ...]:
    if tokenizer is None:
        return ()
    if wrong := [token for token in ids if not 0 <= token < tokenizer.vocab_size]:
        raise ValueError(f"token id {wrong[0]} is outside of the vocabulary of {tokenizer.vocab_size}")
    return tuple(ids)


def _content(message: _Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text for part in message.content)


def _role_prefixed(messages: Messages, *, answer: bool) -> str:
    text = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
    return text + "assistant:" if answer else text
