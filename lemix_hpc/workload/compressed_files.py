"""Compressed lines: `.gz` and `.zst`."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from lemix_hpc.config.errors import UserError
from lemix_hpc.workload.data_files import LONGEST, Block, Part, cut, lines_of

_RATIO = 8
"""By how much text is taken to shrink."""
_PORTION = 1 << 10
"""Bytes that are decompressed at once: a KiB of a file that was made for it becomes 32 MiB."""


class Decompressor(Protocol):
    """One member of a file. `unused_data`: what lies behind its end."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def gzip_member() -> Decompressor:
    return zlib.decompressobj(wbits=31)


def zstandard_member() -> Decompressor:
    """Raises UserError where the package is not installed."""
    try:
        import zstandard
    except ImportError as error:
        raise UserError(
            "training.data: files that end in .zst need the package zstandard; `pip install lemix-hpc[data]` installs it"
        ) from error
    member: Decompressor = zstandard.ZstdDecompressor().decompressobj()
    return member


class CompressedFile:
    """A block is so many compressed bytes, and has the lines that are complete when these have been read and not before.

    There is no way into the middle of the file: to get to a block, what is before it is decompressed. So they are read in
    order, and the place is kept.
    """

    in_order = True

    def __init__(self, path: Path, block: int, member: Callable[[], Decompressor]) -> None:
        """`block`: bytes of text of a block, about. Raises UserError if the file's kind needs a package that is missing."""
        self.path = path
        self.blocks = cut(path.stat().st_size, max(block // _RATIO, 1), ratio=_RATIO)
        self._new_member = member
        self._rewind()

    def read(self, block: Block) -> Part:
        if self._at > block.start:
            self._rewind()
        try:
            with self.path.open("rb") as file:
                file.seek(self._at)
                while self._at < block.start:
                    before = self.blocks[self._next]
                    self._lines_before += len(self._lines(file, before))
                first = self._lines_before
                lines = self._lines(file, block)
        except OSError as error:
            self._rewind()
            raise UserError(f"{self.path}: cannot be read: {error.strerror}.") from error
        except Exception as error:
            # Each library has errors of its own for damaged data.
            self._rewind()
            raise UserError(f"{self.path}: not what its ending says, or damaged: {error}.") from error
        self._lines_before += len(lines)
        return Part(self.path, block, lines, 1 + first)

    def _rewind(self) -> None:
        self._at = self._next = self._lines_before = 0
        self._rest = b""
        self._member: Decompressor | None = self._new_member()

    def _lines(self, file: BinaryIO, block: Block) -> list[bytes]:
        data = file.read(block.end - block.start)
        whole: list[bytes] = []
        rest = bytearray(self._rest)
        for start in range(0, len(data), _PORTION):
            text = self._decompressed(data[start : start + _PORTION])
            if (end := text.rfind(b"\n") + 1) > 0:
                whole += (bytes(rest), text[:end])
                rest.clear()
            rest += text[end:]
            del rest[LONGEST + 1 :]
        last = block.end == self.blocks[-1].end
        if last and self._member is not None and not self._member.eof:
            raise ValueError("it ends in the middle of its data")
        if last:
            whole.append(bytes(rest))
            rest.clear()
        self._rest = bytes(rest)
        self._at, self._next = block.end, self._next + 1
        return lines_of(b"".join(whole), first=self._lines_before == 0)

    def _decompressed(self, data: bytes) -> bytes:
        """Files may have several members, one behind the other, and zeros behind the last."""
        text = []
        while data:
            if self._member is None:
                data = data.lstrip(b"\0")
                if not data:
                    break
                self._member = self._new_member()
            text.append(self._member.decompress(data))
            data = b""
            if self._member.eof:
                data, self._member = self._member.unused_data, None
        return b"".join(text)
