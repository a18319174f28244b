"""The main figures of reports side by side, with ratios to the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lemix_hpc.report.table import ABSENT, number, percent

Report = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A figure of each report as people read it, and its ratio to that of the first: None where it has none."""

    name: str
    values: list[str]
    ratios: list[str | None]


def _count(value: float | None) -> str:
    return ABSENT if value is None else f"{value:,.0f}"


_FIGURES: list[tuple[str, tuple[str, ...], Callable[[float | None], str]]] = [
    ("duration, s", ("duration_s",), number),
    ("requests received", ("serving", "received"), _count),
    ("requests finished", ("serving", "finished"), _count),
    ("T0, ms", ("t0_ms",), number),
    *(
        (f"{title} {which}, ms", ("serving", key, which), number)
        for title, key in (("response", "response_ms"), ("first token", "ttft_ms"), ("per output token", "tpot_ms"))
        for which in ("p50", "p99")
    ),
    ("tokens served per stage-second", ("serving", "tokens_per_stage_s"), number),
    ("micro-batches trained", ("training", "finished"), _count),
    ("optimizer steps", ("training", "steps"), _count),
    ("tokens trained per second", ("training", "tokens_per_s"), number),
    ("loss, last tenth", ("training", "loss_last"), number),
    ("held-out loss before, nats/token", ("training", "held_out", "before"), number),
    ("held-out loss after, nats/token", ("training", "held_out", "after"), number),
    ("training held back, mean s", ("training", "hold_s", "mean"), number),
    ("tasks per second", ("throughput", "per_makespan"), number),
    ("idle (bubbles)", ("bubble_rate",), percent),
    ("stage time of training", ("training", "stage_share"), percent),
    ("forecast error, mean T0", ("forecast_error_t0", "mean"), number),
]
_BEFORE_LATENCIES = 4


def compared(reports: Sequence[Report]) -> list[Row]:
    """Rows without a value in any report are left out."""
    rows = []
    limits = list(_attainments(reports))
    for name, path, shown in [*_FIGURES[:_BEFORE_LATENCIES], *limits, *_FIGURES[_BEFORE_LATENCIES:]]:
        values = [_value(report, path) for report in reports]
        if any(value is not None for value in values):
            rows.append(Row(name, [shown(value) for value in values], _ratios(values)))
    return rows


def _attainments(reports: Sequence[Report]) -> Iterator[tuple[str, tuple[str, ...], Callable[[float | None], str]]]:
    for key, title in (("slo", "response within {} T0"), ("slo_ms", "within the limit on {}")):
        names = dict.fromkeys(name for report in reports for name in report["serving"][key])
        yield from ((title.format(name), ("serving", key, name), percent) for name in names)


def _value(report: Report, path: tuple[str, ...]) -> float | None:
    found: Any = report
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return None if found is None else float(found)


def _ratios(values: list[float | None]) -> list[str | None]:
    first = values[0]
    if not first:
        return [None] * len(values)
    return [None, *(ABSENT if value is None else f"{value / first:.2f}" for value in values[1:])]
