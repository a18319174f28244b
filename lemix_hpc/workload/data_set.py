"""All files of training data as windows of documents, in an order that the seed alone decides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lemix_hpc.config.data_paths import matched
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.text_file import why_no_file
from lemix_hpc.config.workload_section import TextData, TextFields
from lemix_hpc.workload.compressed_files import CompressedFile, gzip_member, zstandard_member
from lemix_hpc.workload.data_files import LONGEST, Block, DataFile, Part, PlainFile
from lemix_hpc.workload.parquet_files import ParquetFile
from lemix_hpc.workload.texts import Conversation, Document, parse_document, wanted

BLOCK = 4 << 20
"""Bytes of text of a block."""
_BLOCKS = 8
"""Blocks of a window, about."""
# Spawn key of the seed for the order of blocks; other keys are those of the workload's lengths and requests.
_ORDER_KEY = 4


@dataclass(frozen=True)
class Window:
    """Documents that are shuffled together, in file order. `at`: part and line of each, shape (documents, 2).

    `malformed`: a message for each other line that is not blank, of `lines` in all.
    """

    parts: Sequence[Part]
    fields: TextFields
    at: NDArray[np.int32]
    malformed: tuple[str, ...]
    lines: int

    def __len__(self) -> int:
        return len(self.at)

    def document(self, index: int) -> Document | Conversation:
        part, line = self.at[index]
        return parse_document(self.parts[part].lines[line].decode(), self.fields)

    def place(self, index: int) -> str:
        """Where a document is, in words."""
        part, line = map(int, self.at[index])
        return self.parts[part].place(line)


class DataSet:
    """The blocks of all files, dealt out to `windows` windows an epoch. Data that fit into one window are one.

    Each epoch has its own order of blocks; those of a compressed file stay together, one behind the other. Only the first
    window is read at the start; while it is in use, the next one is read by a thread.
    """

    def __init__(self, data: TextData, seed: int, *, block: int = BLOCK) -> None:
        """Raises UserError for files that are missing, unreadable, empty or not what their ending says, and if no line of the
        first window is valid."""
        self._fields = data.fields
        self._seed = seed
        self.files = open_files(data, block=block)
        self._units = [unit for file in self.files for unit in _units(file)]
        total = sum(one.nbytes for unit in self._units for _, one in unit)
        self.windows = max(1, -(-total // (_BLOCKS * block)))
        self._reader = ThreadPoolExecutor(1, "training-data")
        self._ahead: tuple[int, Future[Window]] | None = None
        self.first_number, self.first = self._first_with_lines()
        if not len(self.first):
            raise UserError(_no_document(self.first, data, whole=self.windows == 1))

    def window(self, number: int) -> Window:
        """Windows are counted on over all epochs. Raises UserError for a file that cannot be read any more."""
        if self.windows == 1:
            return self.first
        ahead = self._ahead if self._ahead is not None and self._ahead[0] == number else None
        found = (ahead[1] if ahead is not None else self._reader.submit(self._read, number)).result()
        self._ahead = number + 1, self._reader.submit(self._read, number + 1)
        return found

    def _first_with_lines(self) -> tuple[int, Window]:
        """Mostly window 0; a line or a row group that is longer than a window leaves others empty."""
        for number in range(self.windows - 1):
            window = self._read(number)
            if window.lines:
                return number, window
        return self.windows - 1, self._read(self.windows - 1)

    def _read(self, number: int) -> Window:
        epoch, place = divmod(number, self.windows)
        order = np.random.default_rng(np.random.SeedSequence([self._seed, epoch], spawn_key=(_ORDER_KEY,)))
        dealt = [one for unit in order.permutation(len(self._units)).tolist() for one in self._units[unit]]
        ends = np.cumsum([block.nbytes for _, block in dealt])
        starts = ends - [block.nbytes for _, block in dealt]
        mine = np.flatnonzero(starts * self.windows // max(int(ends[-1]), 1) == place)
        # In file order, as long as a window is whole: then its lines can be counted, and files are read from front to back.
        places = {id(file): at for at, file in enumerate(self.files)}
        chosen = sorted((dealt[at] for at in mine), key=lambda one: (places[id(one[0])], one[1].start))
        return _checked(_read_parts(chosen), self._fields)


def open_files(data: TextData, *, block: int = BLOCK) -> list[DataFile]:
    """The files of the recipe's paths and patterns, in order. Raises UserError as `DataSet` does."""
    expected = f"JSON lines with {wanted(data.fields)}"
    paths = matched(data.path)
    if not paths:
        raise UserError(f"{data.where}: expected {expected}, but no file matches.")
    return [_open(path, expected, data.fields, block) for path in paths]


def read_all(data: TextData) -> Window:
    """All documents of all files at once. Raises UserError as `DataSet` does, and if no line is valid."""
    window = _checked(_read_parts([(file, block) for file in open_files(data) for block in file.blocks]), data.fields)
    if not len(window):
        raise UserError(_no_document(window, data, whole=True))
    return window


def _open(path: Path, expected: str, fields: TextFields, block: int) -> DataFile:
    try:
        if why := why_no_file(path):
            raise UserError(f"{path}: expected {expected}, but {why}.")
        size = path.stat().st_size
        with path.open("rb"):
            pass
    except OSError as error:
        raise UserError(f"{path}: expected {expected}, but the file cannot be read: {error.strerror}.") from error
    if size == 0:
        raise UserError(f"{path}: expected {expected}, but the file is empty.")
    match path.suffix:
        case ".gz":
            return CompressedFile(path, block, gzip_member)
        case ".zst":
            return CompressedFile(path, block, zstandard_member)
        case ".parquet":
            return ParquetFile(path, fields.names)
        case _:
            return PlainFile(path, block)


def _units(file: DataFile) -> list[list[tuple[DataFile, Block]]]:
    """What keeps its order when blocks are shuffled."""
    blocks = [(file, block) for block in file.blocks]
    return [blocks] if file.in_order else [[one] for one in blocks]


def _read_parts(blocks: Iterable[tuple[DataFile, Block]]) -> list[Part]:
    parts: list[Part] = []
    for file, block in blocks:
        parts.append(file.read(block).behind(parts[-1] if parts else None))
    return parts


def _checked(parts: Sequence[Part], fields: TextFields) -> Window:
    at, malformed, lines = [], [], 0
    for number, part in enumerate(parts):
        for index, line in enumerate(part.lines):
            if not line.strip():
                continue
            lines += 1
            try:
                if len(line) > LONGEST:
                    raise ValueError(f"longer than {LONGEST >> 20} MiB")
                parse_document(line.decode(), fields)
            except ValueError as error:
                malformed.append(f"{part.place(index)}: {error}")
            else:
                at.append((number, index))
    return Window(parts, fields, np.array(at, np.int32).reshape(-1, 2), tuple(malformed), lines)


def _no_document(window: Window, data: TextData, *, whole: bool) -> str:
    expected = f"JSON lines with {wanted(data.fields)}"
    if not window.lines:
        return f"{data.where}: expected {expected}, but {'the file is' if whole else 'what was read first is'} empty."
    read = f"its {window.lines} lines" if whole else f"the {window.lines} lines that were read first"
    return f"{data.where}: expected {expected}, but none of {read} is valid. The first: {window.malformed[0]}"
