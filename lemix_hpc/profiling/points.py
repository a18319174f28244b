"""Measured passes, and the tables they are kept in: CSV with one line for each batch that was tried."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.text_file import read_text
from lemix_hpc.policy.latency import Shape

Kind = Literal["forward", "backward"]
KINDS: dict[str, Kind] = {"forward": "forward", "prefill": "forward", "decode": "forward", "backward": "backward"}
TIMES = ("ms_per_layer", "ms")
KNOWN = ("batch", "length", "context", "kind", "stage", *TIMES)
ALSO_PROFILED = ("ms_low", "ms_high", "repeats", "peak_bytes", "took_s")
OUT_OF_MEMORY = "oom"
SHOWN_MISTAKES = 10
LARGEST = 64 << 20
"""Bytes of a table: a million points."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A pass of `batch` sequences, each of `length` new tokens on top of `context` cached ones, and its seconds.

    A decode step is a forward of length 1.
    """

    batch: int
    length: int
    seconds: float
    context: int = 0
    kind: Kind = "forward"
    stage: int = 0

    @property
    def shape(self) -> Shape:
        return Shape.of((self.length,) * self.batch, (self.context,) * self.batch)

    @property
    def size(self) -> tuple[int, int, int]:
        """What tells it from other points: repeats of one size are no new evidence."""
        return self.batch, self.length, self.context


@dataclass(frozen=True, slots=True)
class Unfit:
    """A pass that did not fit in the device's memory."""

    batch: int
    length: int
    context: int = 0
    kind: Kind = "forward"
    stage: int = 0


@dataclass(frozen=True, slots=True)
class PointTable:
    """What stands in tables of points. `per_layer`: whether seconds are of one decoder layer, or of a whole stage."""

    points: tuple[Measured, ...]
    unfit: tuple[Unfit, ...]
    per_layer: bool
    warnings: tuple[str, ...]


def read_points(paths: Sequence[Path]) -> PointTable:
    """The points of one or more tables.

    Columns: `batch`, `length`, and `ms_per_layer` or `ms`; optional `context` (cached tokens of each sequence), `kind`
    (forward, prefill, decode or backward) and `stage`. `length` may be left out where `context` is given: decode steps.
    Raises UserError naming file and line of each mistake.
    """
    tables = [_read(path) for path in paths]
    if len({table.per_layer for table in tables}) > 1:
        raise UserError("some tables give ms_per_layer and others ms; fit them one by one")
    return PointTable(
        tuple(point for table in tables for point in table.points),
        tuple(point for table in tables for point in table.unfit),
        tables[0].per_layer,
        tuple(warning for table in tables for warning in table.warnings),
    )


def _read(path: Path) -> PointTable:
    rows = _rows(path)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{path}: the table is empty; its first line names the columns: batch,length,ms_per_layer")
    header = [name.strip() for name in first[1]]
    time = _check_header(path, header)
    points: list[Measured] = []
    unfit: list[Unfit] = []
    mistakes: list[str] = []
    for line, cells in rows:
        try:
            point = _point(header, time, cells)
        except ValueError as error:
            mistakes.append(f"{path}:{line}: {error}")
            continue
        if isinstance(point, Measured):
            points.append(point)
        else:
            unfit.append(point)
    if len(mistakes) > SHOWN_MISTAKES:
        mistakes[SHOWN_MISTAKES:] = [f"and {len(mistakes) - SHOWN_MISTAKES} mistakes more"]
    if mistakes:
        raise UserError("\n".join(mistakes))
    if not points:
        raise UserError(f"{path}: the table has no measured times")
    ignored = [name for name in header if name not in KNOWN + ALSO_PROFILED]
    warnings = (f"{path}: columns that are not used: {', '.join(ignored)}",) if ignored else ()
    return PointTable(tuple(points), tuple(unfit), time == TIMES[0], warnings)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not blank, each with its number."""
    try:
        reader = csv.reader(io.StringIO(read_text(path, most=LARGEST), newline=""), strict=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name an existing table of points") from None
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not a line of CSV: {error}") from None


def _check_header(path: Path, header: Sequence[str]) -> str:
    """Returns the name of the column with the times."""
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f"{path}:1: column given twice: {', '.join(twice)}; keep one of them")
    times = [name for name in TIMES if name in header]
    if len(times) > 1:
        raise UserError(f"{path}:1: both ms_per_layer and ms are given; keep the one to fit")
    missing = [] if "batch" in header else ["batch"]
    if "length" not in header and "context" not in header:
        missing.append("length (or context, for decode steps)")
    if not times:
        missing.append("ms_per_layer (or ms, for times of a whole stage)")
    if missing:
        raise UserError(f"{path}:1: missing columns: {', '.join(missing)}; found {', '.join(header)}")
    return times[0]


def _point(header: Sequence[str], time: str, cells: Sequence[str]) -> Measured | Unfit:
    """One line. Raises ValueError for a cell that cannot be."""
    if len(cells) != len(header):
        raise ValueError(f"expected {len(header)} cells as in the first line, found {len(cells)}")
    row = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    name = row.get("kind") or "forward"
    if name not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, found {name!r}")
    batch = _whole(row, "batch", least=1)
    length = _whole(row, "length", least=1) if "length" in row else 1
    context = _whole(row, "context", least=0) if row.get("context") else 0
    stage = _whole(row, "stage", least=0) if row.get("stage") else 0
    if name == "decode" and length != 1:
        raise ValueError(
            f"length: a decode step has 1 new token per sequence, found {length}; put cached ones in context"
        )
    if row[time].lower() == OUT_OF_MEMORY:
        return Unfit(batch, length, context, KINDS[name], stage)
    return Measured(batch, length, _milliseconds(row[time], time) / 1e3, context, KINDS[name], stage)


def _whole(row: dict[str, str], name: str, *, least: int) -> int:
    text = row[name]
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{name}: expected a whole number, found {text!r}") from None
    if not math.isfinite(number) or number != int(number) or number < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, found {text}")
    return int(number)


def _milliseconds(text: str, name: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{name}: expected milliseconds, or {OUT_OF_MEMORY}, found {text!r}") from None
    if not 0 < number < math.inf:
        raise ValueError(f"{name}: expected a positive and finite number of milliseconds, found {text}")
    return number
