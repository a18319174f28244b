"""A run that figures are drawn of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lemix_hpc.report.aggregates.schema import RunAggregates


@dataclass(frozen=True)
class ShownRun:
    """`about`: what people know it by, such as its model and host; `report`: see docs/metrics.md."""

    name: str
    about: list[tuple[str, str]]
    report: dict[str, Any]
    aggregates: RunAggregates
