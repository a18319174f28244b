"""The figures of a report as pictures, one file for each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lemix_hpc.config.errors import UserError
from lemix_hpc.report.aggregates.views import Runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_pictures() -> None:
    """Raises UserError where none can be drawn: before records are read for nothing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("--png needs matplotlib; install it with `pip install 'lemix-hpc[plots]'`") from None


def write_pictures(runs: Runs, directory: Path) -> list[Path]:
    """Write a PNG for each figure that the runs have data for; their paths. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in _figures(runs):
        path = directory / f"{name}.png"
        figure.savefig(path, dpi=120, facecolor="white")
        written.append(path)
    return written


def _figures(runs: Runs) -> Iterator[tuple[str, Figure]]:
    from lemix_hpc.report.png import charts
    from lemix_hpc.report.png.lanes import stages

    for number, (name, run) in enumerate(runs.items()):
        if run.lanes is not None:
            of_run = "" if len(runs) == 1 else f"-{number}-{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[-80:]}"
            yield f"stages{of_run}", stages(run.lanes, name)
    for name, draw in (
        ("stage-time", charts.stage_time),
        ("latencies", charts.latencies),
        ("over-time", charts.over_time),
        ("waits", charts.waits),
        ("forecasts", charts.forecasts),
        ("training", charts.training),
        ("memory", charts.memory),
        ("placement", charts.placement),
    ):
        if (figure := draw(runs)) is not None:
            yield name, figure
