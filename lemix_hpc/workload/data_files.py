"""Files of training data in blocks, so that no file has to be read as a whole; here those of plain lines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from lemix_hpc.config.errors import UserError

LONGEST = 64 << 20
"""Bytes of the longest line that is read; of longer ones it is only kept that they are too long."""
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Block:
    """Part of a file: from `start` up to, not with, `end`, in the file's own units. `nbytes`: about how much text that is."""

    start: int
    end: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Part:
    """The lines of a block, blank ones too, without their ends.

    `first`: number of the first one from 1; None where those before it were not read, and then `start` is the byte at which it
    begins.
    """

    path: Path
    block: Block
    lines: list[bytes]
    first: int | None
    start: int = 0
    unit: str = "line"

    def place(self, index: int) -> str:
        """Where a line is, in words."""
        if self.first is not None:
            return f"{self.path}, {self.unit} {self.first + index}"
        return f"{self.path}, {self.unit} at byte {self.start + sum(len(line) + 1 for line in self.lines[:index])}"

    def behind(self, before: Part | None) -> Part:
        """With line numbers that go on from another part, if that is the one before it in the file."""
        if self.first is not None or before is None or before.first is None or before.path != self.path:
            return self
        follows = before.block.end == self.block.start
        return replace(self, first=before.first + len(before.lines)) if follows else self


class DataFile(Protocol):
    """A file and its blocks. `in_order`: a block is quick to read only after the one before it."""

    path: Path
    blocks: tuple[Block, ...]
    in_order: bool

    def read(self, block: Block) -> Part:
        """Raises UserError for a file that cannot be read, or is damaged."""
        ...


class PlainFile:
    """Lines as they are. One belongs to the block in which its first byte is."""

    in_order = False

    def __init__(self, path: Path, block: int) -> None:
        """`block`: bytes of a block."""
        self.path = path
        self.blocks = cut(path.stat().st_size, block)

    def read(self, block: Block) -> Part:
        begin = max(block.start - 1, 0)  # the byte before tells whether a line begins at once
        try:
            with self.path.open("rb") as file:
                file.seek(begin)
                content = file.read(block.end - begin)
                if block.start:
                    content = content[content.find(b"\n") + 1 :] if b"\n" in content else b""
                start = block.end - len(content)
                if content and not content.endswith(b"\n"):
                    content += file.readline(LONGEST + 1)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror}.") from error
        return Part(self.path, block, lines_of(content, first=block.start == 0), 1 if block.start == 0 else None, start)


def cut(size: int, block: int, *, ratio: int = 1) -> tuple[Block, ...]:
    """Blocks of a file with so many bytes, which are `ratio` times as many of text."""
    starts = range(0, size, block)
    return tuple(Block(start, min(start + block, size), ratio * min(block, size - start)) for start in starts)


def lines_of(content: bytes, *, first: bool) -> list[bytes]:
    """Whole lines without their ends. `first`: they begin the file, where a byte order mark may be."""
    lines = (content.removeprefix(_BOM) if first else content).split(b"\n")
    return lines if lines[-1] else lines[:-1]
