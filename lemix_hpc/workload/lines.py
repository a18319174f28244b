"""Text files with one record per line. A bad line is skipped and reported, and does not stop the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.text_file import why_no_file

T = TypeVar("T")

LONGEST_LINE = 1 << 26
"""Bytes. A file of another kind may be one line, and have no end."""
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that was left out: its bytes without line end, and why."""

    content: bytes
    reason: str


@dataclass
class Findings:
    """What reading left out: a message per malformed line, the lines themselves, and the number of requests that the trace
    records as failed."""

    malformed: list[str] = field(default_factory=list)
    bad_lines: list[BadLine] = field(default_factory=list)
    failed: int = 0


def numbered_lines(path: Path, expected: str) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line) of every line that is not blank, without byte order mark and line end.

    Raises UserError for a file that cannot be read or has only blank lines; `expected` completes its "expected ...".
    """
    empty = True
    if why := why_no_file(path):
        raise UserError(f"{path}: expected {expected}, but {why}.")
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
                if len(raw) > LONGEST_LINE:
                    raise UserError(
                        f"{path}: expected {expected}, but line {number} is longer than {LONGEST_LINE >> 20} MB. One record "
                        "stands on each line; a JSON list, for instance, has to be taken apart."
                    )
                line = (raw.removeprefix(_BOM) if number == 1 else raw).strip()
                if line:
                    empty = False
                    yield number, line
    except OSError as error:
        raise UserError(f"{path}: expected {expected}, but the file cannot be read: {error.strerror}.") from error
    if empty:
        raise UserError(f"{path}: expected {expected}, but the file is empty.")


def parsed(
    lines: Iterable[tuple[int, bytes]],
    parse: Callable[[str], T],
    *,
    path: Path,
    expected: str,
    findings: Findings,
) -> Iterator[tuple[int, T]]:
    """(line number, record) of every line that `parse` accepts. `parse` raises ValueError for the others, which are added to
    `findings`.

    Raises UserError after the last line if none was accepted; `expected` completes its "expected ...".
    """
    read, rejected = 0, 0
    first_problem = ""
    for number, raw in lines:
        read += 1
        try:
            record = parse(raw.decode())
        except ValueError as error:
            message = f"{path}, line {number}: {error}"
            first_problem = first_problem or message
            findings.malformed.append(message)
            findings.bad_lines.append(BadLine(raw, f"line {number}: {error}"))
            rejected += 1
        else:
            yield number, record
    if read == rejected:
        what = (
            f"none of its {read} lines is valid. The first: {first_problem}"
            if read
            else "nothing follows its first line."
        )
        raise UserError(f"{path}: expected {expected}, but {what}")


def decode_json(text: str | bytes, kind: type[T]) -> T:
    """One JSON value of a type that msgspec can check. Raises ValueError, which says what is wrong and where."""
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error})") from error
