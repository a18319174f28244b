"""Draw measured against predicted times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lemix_hpc.config.errors import UserError
from lemix_hpc.profiling.fitting import FittedStage, FittedTimes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

SUFFIXES = (".png", ".pdf", ".svg")


def check_plot(path: Path) -> None:
    """Raises UserError where no picture can be drawn: before a fit is made for nothing."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"--plot {path}: expected a name that ends in one of {', '.join(SUFFIXES)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("--plot needs matplotlib; install it with `pip install 'lemix-hpc[plots]'`") from None


def draw(stages: Sequence[FittedStage], path: Path) -> None:
    """Two panels for each fit: predicted against measured, and the error over the tokens of the batch, for every form.

    Predictions are those for held-out points. Raises UserError if the file cannot be written.
    """
    from matplotlib.figure import Figure

    fits = [(f"stage {s}, {kind}", fit) for s, stage in enumerate(stages) for kind, fit in stage.kinds.items()]
    figure = Figure(figsize=(11.0, 4.5 * len(fits)), layout="constrained")
    panels = figure.subplots(len(fits), 2, squeeze=False)
    for (name, fit), (left, right) in zip(fits, panels, strict=True):
        _draw_predictions(left, name if len(fits) > 1 else "", fit)
        _draw_errors(right, fit)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def _draw_predictions(axes: Axes, name: str, fit: FittedTimes) -> None:
    measured = np.array([1e3 * point.seconds for point in fit.points])
    predicted = 1e3 * np.array(fit.chosen.held_out)
    batches = np.array([point.batch for point in fit.points])
    for batch in np.unique(batches):
        mine = batches == batch
        axes.plot(measured[mine], predicted[mine], "o", markersize=4, label=f"batch {batch}")
    ends = np.array([measured.min(), measured.max()])
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="measured, ms", ylabel="predicted without this point, ms")
    for axis in (axes.xaxis, axes.yaxis):
        _few_labels(axis)
    axes.set_title(f"{name}: {fit.chosen.name}".removeprefix(": "))
    axes.legend(fontsize="small")


def _draw_errors(axes: Axes, fit: FittedTimes) -> None:
    seconds = np.array([point.seconds for point in fit.points])
    tokens = np.array([point.shape.tokens for point in fit.points])
    for candidate in fit.candidates:
        errors = np.abs(np.array(candidate.held_out) / seconds - 1.0)
        chosen = candidate is fit.chosen
        axes.plot(tokens, 100.0 * errors, "o" if chosen else ".", markersize=5, label=candidate.name)
    axes.set(xscale="log", xlabel="tokens of the batch", ylabel="relative error, %")
    _few_labels(axes.xaxis)
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_ylim(bottom=0.0)
    axes.legend(fontsize="small", ncols=len(fit.candidates), loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _few_labels(axis: Axis) -> None:
    """Of a logarithmic axis: matplotlib names each unit where there is less than a decade, one name over the other."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_data_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.12g}"))
    axis.set_minor_formatter(NullFormatter())
