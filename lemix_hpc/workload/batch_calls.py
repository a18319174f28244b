"""Reader of OpenAI batch files whose lines go to a node's own server as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from lemix_hpc.workload.api_lengths import GENERATING, call_lengths
from lemix_hpc.workload.call_body import check_costs, read_body, sequences
from lemix_hpc.workload.lines import Findings, decode_json, numbered_lines, parsed
from lemix_hpc.workload.tasks import ApiCall
from lemix_hpc.workload.tokenizer import Tokenizer
from lemix_hpc.workload.traces import TraceRow, checked_time


class _Line(msgspec.Struct):
    custom_id: Annotated[str, msgspec.Meta(min_length=1)]
    method: Literal["POST"]
    url: str
    body: msgspec.Raw
    timestamp: float | None = None


class _Name(msgspec.Struct):
    custom_id: str | None = None


def read_batch_calls(path: Path, findings: Findings, tokenizer: Tokenizer, context: int) -> Iterator[TraceRow]:
    """Calls in file order, with their lengths in tokens (see `call_lengths`) and `timestamp` in seconds, 0 without one.

    An invalid line is left out and added to `findings`. Raises UserError if the file cannot be read or has no valid line.
    """
    expected = "an OpenAI batch file, JSON lines with `custom_id`, `method`, `url` and `body`"
    seen: set[str] = set()
    timed: bool | None = None

    def parse(text: str) -> TraceRow:
        nonlocal timed
        line = decode_json(text, _Line)
        if line.custom_id in seen:
            raise ValueError(f"custom_id {line.custom_id!r} was used before")
        if timed is not None and timed != (line.timestamp is not None):
            raise ValueError("`timestamp` must be on every line or on none")
        if line.url not in GENERATING:
            raise ValueError(f"`url` is {line.url!r}, expected one of {', '.join(GENERATING)}")
        body = read_body(bytes(line.body))
        check_costs(body)
        if body.get("stream"):
            raise ValueError("`stream` is not allowed in a batch")
        timed = line.timestamp is not None
        seen.add(line.custom_id)
        prompt, output = call_lengths(line.url, body, tokenizer, context)
        headers = (("content-type", "application/json"),)
        call = ApiCall("POST", line.url, headers, bytes(line.body), answers=sequences(body))
        return TraceRow(checked_time(line.timestamp or 0.0), prompt, output, line.custom_id, call=call)

    lines = numbered_lines(path, expected)
    for _, row in parsed(lines, parse, path=path, expected=expected, findings=findings):
        yield row


def name_of(line: bytes) -> str | None:
    """The `custom_id` of a line that may be invalid otherwise; None if it cannot be read."""
    try:
        return msgspec.json.decode(line, type=_Name).custom_id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
