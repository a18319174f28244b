"""The journal of an attempt: what was promised and what came of it, safe on the disk while the attempt goes on.

A record is framed by its length, a checksum and its number, so that a torn end or a damaged record is found and the others
are read. Records are written in groups by a thread, which waits for the disk; whoever appends does not. The file's space is
reserved ahead, so that a full disk does not stop it at once.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lemix_hpc.config.text_file import BROKEN_JSON
from lemix_hpc.policy.classes import ServiceClass
from lemix_hpc.records.files import RETRY_S, sync_directory
from lemix_hpc.records.schema import ServedTask, TrainedTask

_FRAME = struct.Struct("<IIQ")
"""Length of the content, CRC-32 of number and content, number."""
_NUMBER = struct.Struct("<Q")
_LONGEST = 1 << 30

RESERVE = 16 << 20
"""Bytes that are reserved ahead of what is written."""
GATHER_S = 0.025
"""How long records gather before they are written. Each group takes the interpreter's lock from the scheduler a few times, so
there should not be a group for every record."""


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A request has come. `number`: its task's; `time` [s] of the run; `digest`: of what a client has sent, to tell whether it
    comes again; `service`: its class."""

    number: int
    id: str
    time: float
    prompt_tokens: int
    digest: str = ""
    service: ServiceClass = "interactive"


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
    """A request has its outcome: the line of `tasks.jsonl`."""

    task: ServedTask


class Trained(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A micro-batch is in a step that was committed: the line of `tasks.jsonl`."""

    task: TrainedTask


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


class Journal:
    """Writes `path`, which must not exist. `append` never waits for the disk; what cannot be written is kept, and tried again.

    In the writing thread `first` is called before each group is written, to make safe what the records count on (it may
    raise OSError). Raises OSError if the file cannot be made.
    """

    def __init__(self, path: Path, first: Callable[[], None] = lambda: None) -> None:
        self._path = path
        self._first = first
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._encoder = msgspec.msgpack.Encoder()
        self._offset = 0
        self._reserved = 0
        self._appended = 0
        self._waiting: list[bytes] = []
        self._changed = threading.Condition()
        self._closing = False
        self._hurry = False
        self.synced = 0
        """How many records are safe on the disk."""
        self.trouble: str | None = None
        """Why the disk does not take more, None while it does."""
        self.full = False
        """Whether it does not even take what is waiting: nothing can be promised then."""
        self._reserve()
        sync_directory(path.parent)
        self._thread = threading.Thread(target=self._write_all, name="journal", daemon=True)
        self._thread.start()

    def append(self, record: Record) -> int:
        """Hand a record over. Returns how many there are with it: it is safe once `synced` is as large."""
        content = self._encoder.encode(record)
        with self._changed:
            number = _NUMBER.pack(self._appended)
            checksum = zlib.crc32(content, zlib.crc32(number))
            self._waiting.append(_FRAME.pack(len(content), checksum, self._appended) + content)
            self._appended += 1
            if len(self._waiting) == 1:
                self._changed.notify_all()
            return self._appended

    @property
    def waiting(self) -> int:
        """How many records are not safe yet."""
        return self._appended - self.synced

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until all records so far are safe; False if that takes longer than `timeout_s`."""
        with self._changed:
            wanted, self._hurry = self._appended, True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self.synced >= wanted, timeout_s)

    def close(self, timeout_s: float | None = None) -> None:
        """Write what is left, give unused space back and close the file.

        Raises OSError if the disk does not take it in `timeout_s`.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise OSError(errno.EIO, f"not all of it could be written: {self.trouble}", str(self._path))
        os.ftruncate(self._file, self._offset)
        os.close(self._file)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                self._changed.wait_for(lambda: self._hurry or self._closing, GATHER_S)
                group, self._hurry = list(self._waiting), False
                if not group:
                    return
            while not self._written(b"".join(group)):
                with self._changed:
                    self._changed.wait(RETRY_S)
            with self._changed:
                del self._waiting[: len(group)]
                self.synced += len(group)
                self._changed.notify_all()

    def _written(self, content: bytes) -> bool:
        """Put a group of records onto the disk; False, and why in `trouble`, if it does not take it."""
        try:
            self._first()
            done = 0
            while done < len(content):
                done += os.pwrite(self._file, content[done:], self._offset + done)
            os.fdatasync(self._file)
        except OSError as error:
            self._failed(error)
            return False
        self._offset += len(content)
        self.full = False
        self._reserve()
        return True

    def _failed(self, error: OSError) -> None:
        self.full, self.trouble = True, error.strerror or str(error)
        if error.errno in (errno.ESTALE, errno.EBADF):
            # The file server has forgotten the open file.
            try:
                file = os.open(self._path, os.O_WRONLY)
            except OSError as again:
                self.trouble = again.strerror or str(again)
                return
            os.dup2(file, self._file)
            os.close(file)

    def _reserve(self) -> None:
        """Keep space for some more. A file system that has none left, or cannot do that, is found when it is written to."""
        if self._reserved - self._offset >= RESERVE // 2:
            self.trouble = None
            return
        try:
            os.posix_fallocate(self._file, self._reserved, self._offset + RESERVE - self._reserved)
        except OSError as error:
            self.trouble = None if error.errno in (errno.EOPNOTSUPP, errno.EINVAL) else error.strerror
            return
        self.trouble = None
        self._reserved = self._offset + RESERVE


@dataclass(frozen=True, slots=True)
class JournalContent:
    """`records` in order, without those that cannot be read; `damage`: what is wrong, for people. `length`: bytes up to the
    end of the last record."""

    records: list[Record]
    damage: list[str]
    length: int


def read_journal(path: Path, length: int | None = None) -> JournalContent:
    """Read a journal, or its first `length` bytes; a missing one is empty. Raises OSError if it cannot be read.

    A record behind the last one that was safe may be torn: then nothing but zeros, or too little, follows, and that is no
    damage. Where a record is damaged, the search goes on for the next one that is whole.
    """
    try:
        content = path.read_bytes()[:length]
    except FileNotFoundError:
        return JournalContent([], [], 0)
    decoder = msgspec.msgpack.Decoder(Record)
    records: list[Record] = []
    damage: list[str] = []
    expected = end = 0
    for start, after, number in _frames(content):
        if number != expected:
            damage.append(f"{path}: {_some(number - expected)} before byte {start} cannot be read")
        try:
            records.append(decoder.decode(content[start + _FRAME.size : after]))
        except BROKEN_JSON as error:
            damage.append(f"{path}: the record at byte {start} is of another version: {error}")
        expected, end = number + 1, after
    if content[end:].strip(b"\0"):
        damage.append(f"{path}: what follows byte {end} is torn, and was never safe on the disk")
    return JournalContent(records, damage, end)


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
