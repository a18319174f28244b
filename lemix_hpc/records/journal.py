"""The journal of an attempt: what was promised and what came of it, safe on the disk while the attempt goes on.

It is cut into parts, `journal.000001.bin` and so on, the last two of which are there. Each begins with what all records before
it come to, of the attempts before this one, too. A record is framed by its length, a checksum and its number in the part, so
that a torn end or a damaged record is found and the others are read.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lemix_hpc.config.text_file import BROKEN_JSON
from lemix_hpc.policy.classes import ServiceClass
from lemix_hpc.records.parts import Reach
from lemix_hpc.records.schema import ServedTask, TrainedTask

_FRAME = struct.Struct("<IIQ")
"""Length of the content, CRC-32 of number and content, number."""
_NUMBER = struct.Struct("<Q")
_LONGEST = 1 << 30

UNKNOWN = Reach(0, 0)
"""Of a line whose place nobody has written down."""


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A request has come. `number`: its task's; `time` [s] of the run; `digest`: of what a client has sent, to tell whether it
    comes again; `service`: its class; `place`: in the workload, None for one of a client."""

    number: int
    id: str
    time: float
    prompt_tokens: int
    digest: str = ""
    service: ServiceClass = "interactive"
    place: int | None = None


class Placed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The policy sent a request or micro-batch to a node."""

    number: int
    node: int


class Answered(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A client was given this answer to the call that it has named `id`. `time` [s] of the run."""

    number: int
    id: str
    digest: str
    time: float
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Ended(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A request has its outcome: the line of `tasks.jsonl`, which is the last one `at` this reach. `place`: in the workload,
    None for one of a client; `followed`: the next turn of its conversation comes after it. `results`: lines that
    `results.jsonl` has with it."""

    task: ServedTask
    at: Reach = UNKNOWN
    place: int | None = None
    followed: bool = False
    results: int = 0


class Trained(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A micro-batch is in a step that was committed: the line of `tasks.jsonl`, as in `Ended`."""

    task: TrainedTask
    at: Reach = UNKNOWN


class GroupCut(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Micro-batches were taken for one optimizer step.

    `ids` in order, `tokens` of each. `position`: (window, index of that window's first micro-batch) of the training text,
    where the first one comes from there. `posted`: for each one from clients' samples, how many samples had come when it was
    cut.
    """

    group: int
    ids: tuple[str, ...]
    tokens: tuple[int, ...]
    position: tuple[int, int]
    posted: tuple[int, ...]


class GroupPlaced(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A group of training has gone to a node."""

    group: int
    node: int


class Stepped(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A node committed the step of `groups`, which made `version` of its weights. `time` [s] of the run. `nodes`: all that took
    it together, if they do. `skipped`: its gradient was not finite, and changed no weight."""

    node: int
    groups: tuple[int, ...]
    version: int
    time: float
    nodes: tuple[int, ...] = ()
    skipped: bool = False


class Changed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A key of the recipe was changed by a user, and is in force from `time` on [s] of the run. `value`: in YAML."""

    key: str
    value: str
    time: float


Record = Accepted | Placed | Answered | Ended | Trained | GroupCut | GroupPlaced | Stepped | Changed


class Folded(msgspec.Struct, frozen=True, array_like=True, tag="Folded2"):
    """What all records before a part come to: a `Fold`. The first record of each part. Those without a number in their tag did
    not know the places of requests."""

    fold: msgspec.Raw


def frame(content: bytes, number: int) -> bytes:
    """A record as it is in the file."""
    checksum = zlib.crc32(content, zlib.crc32(_NUMBER.pack(number)))
    return _FRAME.pack(len(content), checksum, number) + content


def journal_part(directory: Path, number: int) -> Path:
    """A part of the journal of the attempt in a directory, from 1 on. Part 0: the whole, of a version that did not cut it."""
    return directory / (f"journal.{number:06d}.bin" if number else "journal.bin")


def journal_parts(directory: Path) -> list[int]:
    """The numbers of the parts that are there, in order. Raises OSError."""
    found = (re.fullmatch(r"journal(?:\.(\d{6,}))?\.bin", path.name) for path in directory.iterdir())
    return sorted(int(match[1] or 0) for match in found if match)


@dataclass(frozen=True, slots=True)
class JournalContent:
    """A part. `records` in order, without those that cannot be read; `damage`: what is wrong, for people. `length`: bytes up to
    the end of the last record."""

    records: list[Record]
    damage: list[str]
    length: int


def read_journal(path: Path, length: int | None = None) -> JournalContent:
    """Read a part, or its first `length` bytes, without the fold at its beginning. Raises OSError if it cannot be read.

    A record behind the last one that was safe may be torn: then nothing but zeros, or too little, follows, and that is no
    damage. Where a record is damaged, the search goes on for the next one that is whole.
    """
    content = path.read_bytes()[:length]
    decoder = msgspec.msgpack.Decoder(Record | Folded)
    records: list[Record] = []
    damage: list[str] = []
    expected = end = 0
    for start, after, number in _frames(content):
        if number != expected:
            damage.append(f"{path}: {_some(number - expected)} before byte {start} cannot be read")
        try:
            record = decoder.decode(content[start + _FRAME.size : after])
            if not isinstance(record, Folded):
                records.append(record)
        except BROKEN_JSON as error:
            damage.append(f"{path}: the record at byte {start} is of another version: {error}")
        expected, end = number + 1, after
    if content[end:].strip(b"\0"):
        damage.append(f"{path}: what follows byte {end} is torn, and was never safe on the disk")
    return JournalContent(records, damage, end)


def read_fold(path: Path, length: int | None = None) -> msgspec.Raw | None:
    """What a part, or its first `length` bytes, begins with; None if that is not whole. Raises OSError if it cannot be read,
    and one of BROKEN_JSON if another version wrote it."""
    with path.open("rb") as file:
        head = file.read(_FRAME.size)
        if len(head) < _FRAME.size:
            return None
        size, _, number = _FRAME.unpack(head)
        after = _FRAME.size + size
        if number or size > _LONGEST or (length is not None and after > length):
            return None
        content = file.read(size)
    if head + content != frame(content, 0):
        return None
    first = msgspec.msgpack.decode(content, type=Record | Folded)
    return first.fold if isinstance(first, Folded) else None


def _some(count: int) -> str:
    return "1 record" if count == 1 else f"{count} records"


def _frames(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Start, end and number of every whole record; numbers rise."""
    at = expected = 0
    while at + _FRAME.size <= len(content):
        length, checksum, number = _FRAME.unpack_from(content, at)
        after = at + _FRAME.size + length
        whole = length and length <= _LONGEST and after <= len(content) and number >= expected
        if whole and zlib.crc32(content[at + 8 : after]) == checksum:
            yield at, after, number
            at, expected = after, number + 1
            continue
        at = _next_byte(content, at)


def _next_byte(content: bytes, at: int) -> int:
    """Where the next record may begin: space that was reserved and not used is skipped at once."""
    if content[at : at + 64].strip(b"\0"):
        return at + 1
    rest = memoryview(content)[at:]
    step = 1 << 16
    for first in range(0, len(rest), step):
        block = bytes(rest[first : first + step])
        stripped = block.lstrip(b"\0")
        if stripped:
            # The frame may begin with zeros of its own.
            return max(at + 1, at + first + len(block) - len(stripped) - _FRAME.size)
    return len(content)
