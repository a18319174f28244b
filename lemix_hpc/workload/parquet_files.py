"""Rows of Parquet files, as the JSON lines that they would be."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.workload.data_files import Block, Part

_ROWS = 1024
"""Rows that become Python objects at once."""


class ParquetFile:
    """A block is a row group, by its number."""

    in_order = False

    def __init__(self, path: Path, columns: Collection[str]) -> None:
        """`columns`: those that are read, as far as there are such. Raises UserError for a file that is none, and where the
        package is not installed."""
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
        self.blocks = tuple(Block(index, index + 1, group.total_byte_size) for index, group in enumerate(groups))
        rows = [group.num_rows for group in groups]
        self._first = [1 + sum(rows[:index]) for index in range(len(rows))]

    def read(self, block: Block) -> Part:
        from pyarrow import parquet

        lines: list[bytes] = []
        try:
            with parquet.ParquetFile(self.path) as file:
                for batch in file.iter_batches(_ROWS, row_groups=[block.start], columns=self._columns):
                    lines += [_line(row) for row in batch.to_pylist()]
        except Exception as error:
            raise UserError(f"{self.path}: cannot be read, or is damaged: {error}.") from error
        return Part(self.path, block, lines, self._first[block.start], unit="row")


def _line(row: dict[str, Any]) -> bytes:
    """Without what has no value: a table has all columns in every row."""
    return msgspec.json.encode({name: value for name, value in row.items() if value is not None})
