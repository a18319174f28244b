"""Comparisons as pictures: lines over the load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.ticker import PercentFormatter

from lemix_hpc.report.aggregates.views import LIMIT, run_color
from lemix_hpc.report.png.panels import Panel, panels_of
from lemix_hpc.report.sweep import AXES, Sweep, dash_of, parts
from lemix_hpc.report.sweep import Panel as Lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def write_sweeps(sweeps: Mapping[str, Sweep], directory: Path) -> list[Path]:
    """Write a PNG for each comparison, or for each share of training in it; their paths. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for number, sweep in enumerate(sweeps.values()):
        for place, figure in enumerate(_figures(sweep)):
            path = directory / f"sweep-{number}-{place}.png"
            figure.savefig(path, dpi=120, facecolor="white")
            written.append(path)
    return written


def _figures(sweep: Sweep) -> Iterator[Figure]:
    for part in parts(sweep):
        panels: list[Panel] = [(panel.title, partial(_draw, panel=panel)) for panel in part.panels]
        figure = panels_of(panels, AXES[part.axis])
        if figure is not None:
            figure.suptitle(part.fixed)
            yield figure


def _draw(axes: Axes, panel: Lines) -> None:
    for line in panel.lines:
        color = run_color(line.number)
        axes.plot(line.xs, line.ys, marker="o", ms=3, label=line.policy, ls=dash_of(line), color=color)
    if panel.is_share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if panel.is_ratio:
        axes.axhline(1.0, color=LIMIT, ls=":")
