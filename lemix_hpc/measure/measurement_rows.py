"""What was measured so far: two CSV files that grow point by point, so that an interrupted job goes on where it stopped."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import quantiles
from typing import Any, TypeVar

from lemix_hpc.profiling.grid import GridPoint

DID_NOT_FIT = "oom"


@dataclass(frozen=True, slots=True)
class PassRow:
    """One point of the grid on one stage (`points.csv`), as `lemix_hpc.profiling.points` reads it.

    `ms` is the median of the repeats, or "oom" where the pass did not fit into memory; `ms_low` and `ms_high` are the
    quartiles. `took_s`: seconds of measuring, warm-up and all.
    """

    stage: int
    kind: str
    batch: int
    length: int
    context: int
    ms: str
    ms_low: str
    ms_high: str
    repeats: int
    peak_bytes: int
    took_s: float

    @property
    def fits(self) -> bool:
        return self.ms != DID_NOT_FIT

    def is_of(self, point: GridPoint) -> bool:
        return (self.kind, self.batch, self.length, self.context) == (
            point.kind,
            point.batch,
            point.length,
            point.context,
        )

    def rules_out(self, point: GridPoint) -> bool:
        """Whether the point cannot fit, since this one did not."""
        own = GridPoint(self.kind, self.batch, self.length, self.context)  # type: ignore[arg-type]
        return not self.fits and point.exceeds(own)


@dataclass(frozen=True, slots=True)
class OtherRow:
    """What does not depend on a batch (`others.csv`): copies, messages to the next stage, optimizer steps, memory at rest."""

    stage: int
    kind: str
    nbytes: int
    ms: str
    ms_low: str
    ms_high: str
    repeats: int


Row = TypeVar("Row", PassRow, OtherRow)


def spread(seconds: Sequence[float]) -> tuple[str, str, str]:
    """Median and quartiles in milliseconds, as they stand in the files."""
    low, middle, high = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 3
    return f"{middle * 1e3:.6g}", f"{low * 1e3:.6g}", f"{high * 1e3:.6g}"


class RowFile:
    """A CSV file of rows. What a killed job wrote in part, at the end, is cut off."""

    def __init__(self, path: Path, row: type[Row]) -> None:
        self._names = [field.name for field in fields(row)]
        self._path = path
        if path.exists():
            content = path.read_bytes()
            path.write_bytes(content[: content.rfind(b"\n") + 1])
        if not path.exists() or not path.stat().st_size:
            path.write_text(",".join(self._names) + "\n", encoding="utf-8")

    def append(self, row: PassRow | OtherRow) -> None:
        """One line, in the file before this returns."""
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._names, lineterminator="\n").writerow(asdict(row))


def read_rows(path: Path, row: type[Row]) -> list[Row]:
    """The rows of a file that a `RowFile` wrote."""
    return list(_rows(path, row))


def _rows(path: Path, row: type[Row]) -> Iterator[Row]:
    types: dict[str, Any] = {"int": int, "float": float, "str": str}
    convert = {field.name: types[str(field.type)] for field in fields(row)}
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            yield row(**{name: convert[name](value) for name, value in line.items()})
