"""From rows to a coefficient file."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from lemix_hpc.measure.measurement_rows import OtherRow, PassRow, read_rows
from lemix_hpc.measure.profiler import CACHED_TOKEN, COPY_BYTES, MESSAGE_BYTES, OTHERS, POINTS
from lemix_hpc.measure.subject import Subject, slug
from lemix_hpc.profiling.coefficients import Links, StageMemory, save_coefficients
from lemix_hpc.profiling.fitting import fit_points, make_file
from lemix_hpc.profiling.points import read_points
from lemix_hpc.records.files import replace


def write_result(
    subject: Subject, hardware: str, stages: int, run_dir: Path, out: Path, provenance: dict[str, Any]
) -> None:
    """Fit the job's points, and write OUT/<hardware>/<model>-<dtype>-s<stages>.yaml, the raw tables beside it, and report.json.

    Raises UserError if there are too few points for a fit.
    """
    table = read_points([run_dir / POINTS])
    passes, others = read_rows(run_dir / POINTS, PassRow), read_rows(run_dir / OTHERS, OtherRow)
    fitted = [fit_points([point for point in table.points if point.stage == stage]) for stage in range(stages)]
    directory = out / slug(hardware)
    directory.mkdir(parents=True, exist_ok=True)
    name = f"{subject.file_name}-s{stages}"
    file = make_file(
        fitted,
        per_layer=False,
        hardware=hardware,
        model=subject.model,
        dtype=subject.dtype,
        layers=subject.layers,
        provenance=provenance,
        points=f"{name}.csv",
        memory=[stage_memory(_of(stage, passes), _of(stage, others), subject.hidden_bytes) for stage in range(stages)],
        step_s=[seconds for stage in range(stages) for seconds in _seconds(_of(stage, others), "step")],
        links=links(others),
    )
    shutil.copyfile(run_dir / POINTS, directory / f"{name}.csv")
    shutil.copyfile(run_dir / OTHERS, directory / f"{name}-others.csv")
    save_coefficients(file, directory / f"{name}.yaml")
    summary = {
        "coefficients": str(directory / f"{name}.yaml"),
        "hardware": hardware,
        "model": subject.model,
        "dtype": subject.dtype,
        "stages": stages,
        "points": sum(row.fits for row in passes),
        "did_not_fit": sum(not row.fits for row in passes),
        "warnings": [warning for stage in fitted for times in stage.kinds.values() for warning in times.warnings],
        "seconds": round(sum(row.took_s for row in passes), 1),
    }
    replace(run_dir / "report.json", msgspec.json.format(msgspec.json.encode(summary)))


def stage_memory(passes: Sequence[PassRow], others: Sequence[OtherRow], hidden_bytes: int | None = None) -> StageMemory:
    """Bytes at rest, and how the peaks grow with the tokens of a micro-batch and with those in the cache. `hidden_bytes`: of a
    token's hidden state, where there is one."""
    rest = next(row.nbytes for row in others if row.kind == "at rest")
    return StageMemory(
        weights_bytes=rest,
        activation_bytes_per_token=_slope(
            [(r.batch * r.length, r.peak_bytes) for r in passes if _peaked(r, "backward")]
        ),
        kv_bytes_per_token=_of_cache(passes, others),
        input_bytes_per_token=hidden_bytes,
    )


def _of_cache(passes: Sequence[PassRow], others: Sequence[OtherRow]) -> float | None:
    """What the engine says, or how its peaks grow."""
    told = [float(row.nbytes) for row in others if row.kind == CACHED_TOKEN]
    if told:
        return told[0]
    return _slope([(r.batch * (r.length + r.context), r.peak_bytes) for r in passes if _peaked(r, "decode")])


def links(others: Sequence[OtherRow]) -> Links:
    """Medians over all stages. GB are 10^9 bytes; directions that the hardware does not have are left out."""
    largest = max(MESSAGE_BYTES)
    return Links(
        host_to_device_gb_s=_gb_s(others, "host to device", COPY_BYTES),
        device_to_host_gb_s=_gb_s(others, "device to host", COPY_BYTES),
        message_latency_s=_median(_seconds(others, "message", min(MESSAGE_BYTES))),
        message_gb_s=_gb_s(others, "message", largest),
    )


def _of(stage: int, rows: Sequence[Any]) -> list[Any]:
    return [row for row in rows if row.stage == stage]


def _peaked(row: PassRow, kind: str) -> bool:
    return row.fits and row.kind == kind


def _seconds(others: Sequence[OtherRow], kind: str, nbytes: int = 0) -> list[float]:
    return [float(row.ms) / 1e3 for row in others if row.kind == kind and row.nbytes == nbytes]


def _gb_s(others: Sequence[OtherRow], kind: str, nbytes: int) -> float | None:
    seconds = _median(_seconds(others, kind, nbytes))
    return None if seconds is None else nbytes / seconds / 1e9


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


def _slope(points: Sequence[tuple[int, int]]) -> float | None:
    """Bytes per token by least squares, at least 0; None without points of different sizes."""
    tokens, peaks = np.array(points, dtype=float).reshape(-1, 2).T
    if len(set(tokens)) < 2:
        return None
    return max(0.0, float(np.polyfit(tokens, peaks, 1)[0]))
