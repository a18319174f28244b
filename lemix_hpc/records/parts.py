"""Files of lines in parts: what is written goes to `NAME.jsonl`, older parts are `NAME.000001.jsonl.gz` and so on."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lemix_hpc.config.errors import UserError
from lemix_hpc.records.files import sync_directory

_BLOCK = 1 << 20


class Reach(NamedTuple):
    """How much of a file of lines counts: all parts before `part`, from 1, and so many `lines` of that."""

    part: int = 1
    lines: int = 0


class Line(NamedTuple):
    """`text` with its line end; `number` from 1 in the file `path`."""

    text: bytes
    path: Path
    number: int

    @property
    def place(self) -> str:
        return f"{self.path}, line {self.number}"


def part(path: Path, number: int) -> Path:
    """A part of `path` that is not compressed yet."""
    return path.with_name(f"{path.stem}.{number:06d}{path.suffix}")


def compressed(path: Path) -> Path:
    """The file that a part is compressed to."""
    return path.with_name(f"{path.name}.gz")


def parts(path: Path) -> list[Path]:
    """The older parts of `path` in order, by the names that they have without compression. Raises OSError."""
    name = re.compile(re.escape(path.stem) + r"\.(\d{6,})" + re.escape(path.suffix) + r"(\.gz)?")
    found = (name.fullmatch(other.name) for other in path.parent.iterdir())
    return [part(path, number) for number in sorted({int(match[1]) for match in found if match})]


def compress(path: Path) -> None:
    """Replace a part by its compressed file, which is on the disk before the part is removed. Raises OSError."""
    target = compressed(path)
    partial = target.with_name(f"{target.name}.partial")
    try:
        with path.open("rb") as source, partial.open("wb") as raw:
            # The fastest level: lines are so much alike that the best one gives but a third more.
            with gzip.GzipFile("", "wb", 1, raw, mtime=0) as file:
                shutil.copyfileobj(source, file, _BLOCK)
            raw.flush()
            os.fsync(raw.fileno())
        partial.replace(target)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
    path.unlink()


def read_lines(path: Path, reach: Reach | None = None) -> Iterator[Line]:
    """The lines of all parts of a file in order, read one by one, without lines that were cut off at the end of a part.

    `reach`: no more than these. Lines may be added meanwhile. Raises OSError if there is no such file or it cannot be read,
    before the first line; UserError at a part that is damaged.
    """
    older, newest = _open_all(path)
    return _lines(older, newest, path, reach)


def _open_all(path: Path) -> tuple[list[Path], BinaryIO | None]:
    """The older parts, and the newest one; None for that at a moment, or after a crash, between two parts."""
    while True:
        older = parts(path)
        try:
            newest = path.open("rb")
        except FileNotFoundError:
            if not older:
                raise
            newest = None
        if parts(path) == older:
            return older, newest
        if newest is not None:
            newest.close()


def _lines(older: list[Path], newest: BinaryIO | None, path: Path, reach: Reach | None) -> Iterator[Line]:
    try:
        last = 0
        for each in older:
            last = _number(each)
            yield from islice(_lines_of_part(each), _most(last, reach))
        if newest is not None:
            # Parts before it may have been removed.
            number = last + 1 if reach is None or last >= reach.part else reach.part
            yield from islice(_whole_lines(newest, path), _most(number, reach))
    finally:
        if newest is not None:
            newest.close()


def _number(part: Path) -> int:
    return int(part.stem.rpartition(".")[2])


def _most(number: int, reach: Reach | None) -> int | None:
    """How many lines of a part count, None for all."""
    if reach is None or number < reach.part:
        return None
    return reach.lines if number == reach.part else 0


def _lines_of_part(path: Path) -> Iterator[Line]:
    packed = compressed(path)
    if not packed.exists():
        try:
            file = path.open("rb")
        except FileNotFoundError:
            pass  # It has just been compressed.
        else:
            with file:
                yield from _whole_lines(file, path)
            return
    try:
        with packed.open("rb") as raw, gzip.open(raw) as unpacked:
            yield from _whole_lines(unpacked, packed)
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(f"{packed}: damaged, or cannot be read: {error}. Remove it to read the rest.") from error


def _whole_lines(file: BinaryIO | gzip.GzipFile, path: Path) -> Iterator[Line]:
    for number, text in enumerate(file, start=1):
        if text.endswith(b"\n"):
            yield Line(text, path, number)
