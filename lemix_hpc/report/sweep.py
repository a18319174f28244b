"""What `lemix compare --json` has written, as lines: figures of each policy over the load, and their ratios to the baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.text_file import BROKEN_JSON, read_bytes
from lemix_hpc.report.aggregates.views import RUN_COLORS
from lemix_hpc.report.table import ABSENT, number, percent

LARGEST = 1 << 26
Figures = dict[str, float | None]
Axis = Literal["rate", "training_share"]
AXES: dict[Axis, str] = {"rate": "requests per second", "training_share": "training micro-batches / all tasks"}


class SweepRow(msgspec.Struct, frozen=True):
    """A policy under a load, None where the load is the recipe's. `means`: over `runs` seeds; `ratios`: to the baseline's."""

    policy: str
    rate: float | None
    training_share: float | None
    runs: int
    means: Figures
    ratios: Figures


class Sweep(msgspec.Struct, frozen=True):
    """The rows of a comparison, those of a load one behind the other."""

    baseline: str
    rows: list[SweepRow]

    @property
    def policies(self) -> list[str]:
        """In the order of the rows."""
        return list(dict.fromkeys(row.policy for row in self.rows))


@dataclass(frozen=True, slots=True)
class Line:
    """A policy's figure at increasing loads, where it has one. `number`: among the policies."""

    policy: str
    number: int
    xs: list[float]
    ys: list[float]


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines in one pair of axes. `is_share`: from 0 to 1; `is_ratio`: to the baseline's, which is 1."""

    title: str
    lines: list[Line]
    is_share: bool = False
    is_ratio: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """What is drawn over one axis of loads; `fixed`: what the other one was meanwhile, empty where it was not varied."""

    axis: Axis
    fixed: str
    panels: list[Panel]


@dataclass(frozen=True, slots=True)
class Cell:
    value: str
    ratio: str


_FIGURES: list[tuple[str, str, bool]] = [
    ("limits_met", "Requests within all limits in ms", True),
    ("throughput", "Tasks per second", False),
    ("p50_ms", "Response, median, ms", False),
    ("p99_ms", "Response, 99 %, ms", False),
    ("ttft_p99_ms", "Time to first token, 99 %, ms", False),
    ("tpot_p99_ms", "Time per output token, 99 %, ms", False),
    ("training_tokens_per_s", "Tokens trained per second", False),
    ("micro_batches_per_s", "Micro-batches trained per second", False),
    ("tokens_per_stage_s", "Tokens served per stage-second of serving", False),
    ("batch_tokens_per_s", "Tokens of batch requests per second", False),
    ("bubble_rate", "Idle (bubbles)", True),
    ("fullest_stage", "Fullest stage, of its memory", True),
    ("hold_mean_s", "Training held back, mean s", False),
]


def read_sweep(path: Path) -> Sweep:
    """Raises UserError for a file that is none of `lemix compare --json`, or has no rows."""
    try:
        sweep = msgspec.json.decode(read_bytes(path, most=LARGEST), type=Sweep)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except BROKEN_JSON as error:
        raise UserError(f"{path}: is no file of `lemix compare --json`: {error}") from error
    if not sweep.rows:
        raise UserError(f"{path}: has no rows; make it again with `lemix compare --json`")
    return sweep


def figures_of(sweep: Sweep) -> list[tuple[str, str, bool]]:
    """Name, title, and whether it is a share, of all figures that any row has."""
    has = {name for row in sweep.rows for name, value in row.means.items() if value is not None}
    within = [name for name in sweep.rows[0].means if name.startswith("slo_")]
    limits = [(name, f"Responses within {name.removeprefix('slo_')} T0", True) for name in within]
    return [each for each in (*limits, *_FIGURES) if each[0] in has]


def parts(sweep: Sweep) -> list[Part]:
    """Over rates where several were tried, for each share of training; else over shares. None where the load was not varied."""
    rates, shares = ({getattr(row, axis) for row in sweep.rows} for axis in AXES)
    if len(rates) > 1:
        groups = [[row for row in sweep.rows if row.training_share == share] for share in _in_order(shares)]
        return [Part("rate", _told(group[0], len(shares) > 1), list(_panels(sweep, group, "rate"))) for group in groups]
    if len(shares) > 1:
        return [Part("training_share", "", list(_panels(sweep, sweep.rows, "training_share")))]
    return []


def table(sweep: Sweep) -> Iterator[tuple[SweepRow, list[Cell]]]:
    """The figures of each row, and their ratios to the baseline's."""
    for row in sweep.rows:
        yield row, [_cell(row, sweep.baseline, name, is_share) for name, _, is_share in figures_of(sweep)]


def dash_of(line: Line) -> Literal["solid", "dashed"]:
    """There are more policies than colours."""
    return "solid" if line.number < len(RUN_COLORS) else "dashed"


def _in_order(values: set[float | None]) -> list[float | None]:
    return sorted(values, key=lambda value: (value is not None, value or 0.0))


def _told(row: SweepRow, several: bool) -> str:
    share = row.training_share
    return f"training share {'of the recipe' if share is None else f'{share:g}'}" if several else ""


def _panels(sweep: Sweep, rows: Sequence[SweepRow], axis: Axis) -> Iterator[Panel]:
    for name, title, is_share in figures_of(sweep):
        if lines := list(_lines(sweep, rows, axis, name, ratios=False)):
            yield Panel(title, lines, is_share=is_share)
        ratios = list(_lines(sweep, rows, axis, name, ratios=True))
        if any(line.policy != sweep.baseline for line in ratios):
            yield Panel(f"{title} / {sweep.baseline}'s", ratios, is_ratio=True)


def _lines(sweep: Sweep, rows: Sequence[SweepRow], axis: Axis, name: str, *, ratios: bool) -> Iterator[Line]:
    for place, policy in enumerate(sweep.policies):
        points = [
            (x, y)
            for row in rows
            if row.policy == policy
            and (x := getattr(row, axis)) is not None
            and (y := (row.ratios if ratios else row.means).get(name)) is not None
        ]
        if points:
            xs, ys = zip(*sorted(points), strict=True)
            yield Line(policy, place, list(xs), list(ys))


def _cell(row: SweepRow, baseline: str, name: str, is_share: bool) -> Cell:
    value, ratio = row.means.get(name), row.ratios.get(name)
    shown = ABSENT if value is None else percent(value) if is_share else number(value)
    return Cell(shown, "" if ratio is None or row.policy == baseline else f"{ratio:.2f}")
