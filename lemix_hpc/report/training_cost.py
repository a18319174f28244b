"""What training has cost the requests of a run: the same load, simulated with its training and without any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from lemix_hpc.config.text_file import BROKEN_JSON
from lemix_hpc.records.files import replace

FILE = "training_cost.json"
NAMES = {"ttft_p99_ms": "TTFT p99", "tpot_p99_ms": "TPOT p99", "response_p99_ms": "response p99"}


class ServedFigures(msgspec.Struct, frozen=True):
    """How requests fared: the share within the limits, and 99th percentiles, ms. None where there are none."""

    attainment: float | None
    ttft_p99_ms: float | None
    tpot_p99_ms: float | None
    response_p99_ms: float | None


class TrainingCost(msgspec.Struct, frozen=True):
    """`limit`: what attainment is of, in words. `run`: as it was; `simulated`: its load in the simulator, with its arrivals,
    lengths and the stage times that it has learned; `serve_only`: the same without training."""

    limit: str
    run: ServedFigures
    simulated: ServedFigures
    serve_only: ServedFigures

    @property
    def words(self) -> str:
        """What training has cost, by the two that were simulated."""
        told = []
        with_it, without = self.simulated, self.serve_only
        if with_it.attainment is not None and without.attainment is not None:
            told.append(f"attainment {100 * (with_it.attainment - without.attainment):+.1f} points ({self.limit})")
        for field, name in NAMES.items():
            before, after = getattr(without, field), getattr(with_it, field)
            if before is not None and after is not None:
                told.append(f"{name} {after - before:+.3g} ms")
        return ", ".join(told)


def training_cost(run: dict[str, Any], simulated: dict[str, Any], serve_only: dict[str, Any]) -> TrainingCost:
    """Of the three reports. Attainment is that of the recipe's limits in ms, or else of the middle multiple of T0."""
    in_ms = run["serving"]["slo_ms"]
    multiples = list(run["serving"]["slo"])
    key, name = (
        ("slo_ms", "all" if "all" in in_ms else next(iter(in_ms))) if in_ms else ("slo", multiples[len(multiples) // 2])
    )
    limit = f"response within {name} T0" if key == "slo" else "all limits" if name == "all" else f"limit on {name}"
    return TrainingCost(limit, *(_figures(report["serving"], key, name) for report in (run, simulated, serve_only)))


def _figures(serving: dict[str, Any], key: str, name: str) -> ServedFigures:
    p99 = (serving[measure]["p99"] for measure in ("ttft_ms", "tpot_ms", "response_ms"))
    return ServedFigures(serving[key][name], *p99)


def write_cost(cost: TrainingCost, run_dir: Path) -> None:
    """For later reports of the run. Raises OSError."""
    replace(run_dir / FILE, msgspec.json.format(msgspec.json.encode(cost)) + b"\n")


def read_cost(run_dir: Path) -> TrainingCost | None:
    """None if nobody has asked for it, or it cannot be read."""
    try:
        return msgspec.json.decode((run_dir / FILE).read_bytes(), type=TrainingCost)
    except (OSError, *BROKEN_JSON):
        return None
