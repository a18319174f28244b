"""Rows of Parquet files, as the JSON lines that they would be."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.workload.data_files import LONGEST, Block, Part

if TYPE_CHECKING:
    from pyarrow.parquet import RowGroupMetaData

LARGEST_GROUP = 512 << 20
"""Bytes of the largest row group that is read: it is in memory as a whole."""
_ROWS = 64
"""Rows that become Python objects at once. What is the same in many rows is once in the file, in a dictionary of a MB or so,
and as often as there are rows in memory."""


class ParquetFile:
    """A block is a row group, by its number."""

    in_order = False

    def __init__(self, path: Path, columns: Collection[str]) -> None:
        """`columns`: those that are read, as far as there are such. Raises UserError for a file that is none, for one with too
        large row groups, and where the package is not installed."""
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise UserError(
                "training.data: Parquet files need the package pyarrow; `pip install lemix-hpc[data]` installs it"
            ) from error
        self.path = path
        try:
            with parquet.ParquetFile(path) as file:
                groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
                names = file.schema_arrow.names
        except Exception as error:
            # pyarrow has many errors for damaged files.
            raise UserError(f"{path}: not a Parquet file, or damaged: {error}.") from error
        self._columns = [name for name in names if name in columns]
        if not self._columns:
            raise UserError(
                f"{path}: expected some of the columns {', '.join(sorted(columns))}, found {', '.join(names[:8])}."
            )
        sizes = [_sizes(group, self._columns) for group in groups]
        for index, size in enumerate(sizes):
            if sum(size.values()) > LARGEST_GROUP:
                largest = max(size, key=size.__getitem__)
                raise UserError(self._too_large(index, sum(size.values()), f", most of them in the column {largest}"))
        self.blocks = tuple(Block(index, index + 1, sum(size.values())) for index, size in enumerate(sizes))
        rows = [group.num_rows for group in groups]
        self._first = [1 + sum(rows[:index]) for index in range(len(rows))]

    def read(self, block: Block) -> Part:
        try:
            lines = self._lines(block.start)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self.path}: cannot be read, or is damaged: {error}.") from error
        return Part(self.path, block, lines, self._first[block.start], unit="row")

    def _lines(self, group: int) -> list[bytes]:
        from pyarrow import parquet

        lines: list[bytes] = []
        nbytes = 0
        with parquet.ParquetFile(self.path) as file:
            for batch in file.iter_batches(_ROWS, row_groups=[group], columns=self._columns):
                # Of a row that is too long it is only kept that it is.
                lines += [_line(row)[: LONGEST + 1] for row in batch.to_pylist()]
                nbytes += sum(map(len, lines[-batch.num_rows :]))
                if nbytes > LARGEST_GROUP:
                    raise UserError(self._too_large(group, nbytes, " or more as text"))
        return lines

    def _too_large(self, group: int, nbytes: int, more: str) -> str:
        return (
            f"{self.path}: row group {group} has {nbytes >> 20} MiB{more}, and at most {LARGEST_GROUP >> 20} are read at once; "
            "write the file with smaller row groups, such as row_group_size=1000 of pyarrow."
        )


def _sizes(group: RowGroupMetaData, columns: Collection[str]) -> dict[str, int]:
    """Bytes of each of these columns, uncompressed."""
    sizes = dict.fromkeys(columns, 0)
    for index in range(group.num_columns):
        part = group.column(index)
        for name in columns:
            # A column of lists or objects is stored as several.
            if part.path_in_schema == name or part.path_in_schema.startswith(f"{name}."):
                sizes[name] += part.total_uncompressed_size
    return sizes


def _line(row: dict[str, Any]) -> bytes:
    """Without what has no value: a table has all columns in every row."""
    return msgspec.json.encode({name: value for name, value in row.items() if value is not None})
