"""The runs of a grid summed up: means over the seeds, and ratios to a baseline under the same load."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from lemix_hpc.report.sweep import Sweep
from lemix_hpc.studies.sweep import Done, Figures

Load = tuple[float | None, float | None]


@dataclass(frozen=True)
class Row:
    """A policy under a load. `means`: of its `runs`, without the `broken` ones; `ratios`: of its means to the baseline's."""

    policy: str
    rate: float | None
    training_share: float | None
    runs: int
    broken: int
    training_nodes: tuple[int, ...]
    means: Figures
    ratios: Figures


def summed_up(done: Sequence[Done], baseline: str) -> list[Row]:
    """A row for each policy and load, in the order of the runs. The baseline is one of the policies."""
    groups: dict[tuple[Load, str], list[Done]] = {}
    for one in done:
        groups.setdefault(((one.cell.rate, one.cell.training_share), one.cell.policy), []).append(one)
    means = {key: _means(runs) for key, runs in groups.items()}
    return [
        Row(
            policy,
            *load,
            runs=len(runs),
            broken=sum(bool(one.broken) for one in runs),
            training_nodes=tuple(sorted({one.training_nodes for one in runs if one.training_nodes is not None})),
            means=means[load, policy],
            ratios=_ratios(means[load, policy], means[load, baseline]),
        )
        for (load, policy), runs in groups.items()
    ]


def as_csv(done: Sequence[Done]) -> str:
    """Every single run as a line."""
    text = io.StringIO()
    rows = [_flat(one) for one in done]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(done: Sequence[Done], rows: Sequence[Row], baseline: str) -> str:
    """Every single run, and the rows."""
    content = {
        "baseline": baseline,
        "rows": [dataclasses.asdict(row) for row in rows],
        "runs": [_flat(one) for one in done],
    }
    return json.dumps(content, indent=2) + "\n"


def as_sweep(rows: Sequence[Row], baseline: str) -> Sweep:
    """The rows, to be drawn."""
    return msgspec.convert({"baseline": baseline, "rows": [dataclasses.asdict(row) for row in rows]}, Sweep)


def _flat(one: Done) -> dict[str, Any]:
    return {**dataclasses.asdict(one.cell), "training_nodes": one.training_nodes, "broken": one.broken, **one.figures}


def _means(runs: Sequence[Done]) -> Figures:
    """Means of what is defined in every run that counts."""
    whole = [run.figures for run in runs if not run.broken]
    columns = {name: [figures[name] for figures in whole] for name in runs[0].figures}
    return {name: _mean(values) for name, values in columns.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined and len(defined) == len(values) else None


def _ratios(figures: Figures, baseline: Figures) -> Figures:
    return {
        name: value / base if value is not None and (base := baseline[name]) else None
        for name, value in figures.items()
    }
