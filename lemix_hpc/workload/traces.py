"""Readers of published request traces: the arrival of each request, and the lengths of its prompt and its answer.

Each reader yields rows in file order, with times in seconds of the trace's own clock. Invalid lines are left out and added to
`findings`. All raise UserError if the file cannot be read, lacks a column, or has no valid line.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.workload.lines import Findings, decode_json, numbered_lines, parsed
from lemix_hpc.workload.tasks import ApiCall

MOST_TOKENS = 10_000_000
LATEST_S = 1e12
"""Trace clocks may count from 1970, and some count in milliseconds."""

# Times count from a moment near the traces: seconds since 1970 as a float would lose fractions of a microsecond.
_NEAR = datetime(2023, 1, 1, tzinfo=UTC)


class TraceRow(NamedTuple):
    """One request of a trace: seconds, and numbers of tokens. `id`, `tokens` and `call` are empty unless the trace has them."""

    time: float
    prompt_tokens: int
    output_tokens: int
    id: str = ""
    tokens: tuple[int, ...] = ()
    call: ApiCall | None = None


def read_azure(path: Path, findings: Findings) -> Iterator[TraceRow]:
    """Azure LLM inference traces of 2023 and 2024 (Azure/AzurePublicDataset). Timestamps without a zone are UTC."""
    columns = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
    for time, prompt, output in _csv_records(path, "an Azure LLM trace", columns, findings, _iso_seconds):
        yield TraceRow(time, prompt, output)


def read_burstgpt(path: Path, findings: Findings) -> Iterator[TraceRow]:
    """BurstGPT traces (HPMLL/BurstGPT; Wang et al., "BurstGPT", KDD 2025).

    Rows with 0 response tokens are requests that failed, as the publisher says; they are counted and left out, which
    makes `BurstGPT_1.csv` the same workload as the publisher's `BurstGPT_without_fails_1.csv`.
    """
    columns = ("Timestamp", "Request tokens", "Response tokens")
    for time, prompt, output in _csv_records(path, "a BurstGPT trace", columns, findings, _seconds):
        if output == 0:
            findings.failed += 1
        else:
            yield TraceRow(time, prompt, output)


class _MooncakeLine(msgspec.Struct):
    timestamp: float
    input_length: Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)]
    output_length: Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)]


def read_mooncake(path: Path, findings: Findings) -> Iterator[TraceRow]:
    """Mooncake traces (kvcache-ai/Mooncake): JSON lines with timestamps in milliseconds. Prefix-block hashes are not used."""
    expected = "a Mooncake trace, JSON lines with `timestamp` (ms), `input_length` and `output_length`"

    def parse(text: str) -> TraceRow:
        line = decode_json(text, _MooncakeLine)
        return TraceRow(checked_time(line.timestamp / 1000), line.input_length, line.output_length)

    lines = numbered_lines(path, expected)
    for _, row in parsed(lines, parse, path=path, expected=expected, findings=findings):
        yield row


def _csv_records(
    path: Path, what: str, columns: tuple[str, str, str], findings: Findings, parse_time: Callable[[str], float]
) -> Iterator[tuple[float, int, int]]:
    """(time, prompt tokens, output tokens) of each line, from three named columns in any order among others."""
    expected = f"{what}, CSV with the columns {', '.join(columns)}"
    lines = numbered_lines(path, expected)
    _, header = next(lines)
    names = [name.strip().strip('"') for name in header.decode(errors="replace").split(",")]
    if missing := [column for column in columns if column not in names]:
        found = header[:120].decode(errors="replace")
        raise UserError(f"{path}: expected {expected}, but its first line {found!r} lacks {', '.join(missing)}.")
    time_at, prompt_at, output_at = (names.index(column) for column in columns)

    def parse(text: str) -> tuple[float, int, int]:
        fields = _fields(text)
        if len(fields) != len(names):
            raise ValueError(f"{len(fields)} fields, where the header has {len(names)}")
        return (
            parse_time(fields[time_at].strip()),
            _count(fields[prompt_at], columns[1]),
            _count(fields[output_at], columns[2]),
        )

    for _, record in parsed(lines, parse, path=path, expected=expected, findings=findings):
        yield record


def _fields(line: str) -> list[str]:
    try:
        return next(csv.reader([line]))
    except csv.Error as error:
        raise ValueError(f"not CSV: {error}") from error


def _count(text: str, column: str) -> int:
    if not (text := text.strip()).isascii() or not text.isdigit():
        raise ValueError(f"{column} is {text!r}, expected a whole number of tokens")
    # Not before it is known that it has few digits.
    if len(text.lstrip("0")) > len(str(MOST_TOKENS)) or int(text) > MOST_TOKENS:
        raise ValueError(f"{column} is {text[:40]}, and no request has more than {MOST_TOKENS} tokens")
    return int(text)


def checked_time(seconds: float) -> float:
    """Raises ValueError for a time that no clock shows."""
    if not abs(seconds) <= LATEST_S:
        raise ValueError(f"the timestamp is {seconds:g} s, which no clock shows")
    return seconds


def _iso_seconds(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _NEAR).total_seconds()


def _seconds(text: str) -> float:
    return checked_time(float(text))
