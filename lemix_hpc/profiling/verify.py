"""Whether a coefficient file is what it says: its links to other files, and its fit to the points beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lemix_hpc.config.errors import UserError
from lemix_hpc.profiling.coefficients import CoefficientFile
from lemix_hpc.profiling.points import Measured, read_points

LEAST_TOLERANCE = 0.01


def verify(file: CoefficientFile, path: Path) -> str:
    """One sentence on a file that is in order.

    Raises UserError if its stages and layers cannot be, if the points that it names are missing, or if they are not the ones
    it was fitted to: half of them are further off than 95 % were in cross-validation.
    """
    stages = len(file.stages) if file.stages else 1
    if stages > file.layers:
        raise UserError(f"{path}: {stages} stages need at least {stages} layers, and the file has {file.layers}")
    latency = file.latency(stages)
    if file.points is None:
        return f"in order; {stages if file.stages else 'any number of'} stages, no points beside it"
    table = read_points([path.parent / file.points])
    if table.per_layer != (file.per_layer is not None):
        raise UserError(
            f"{path}: {file.points} has times of {'layers' if table.per_layer else 'stages'}, and the file does not"
        )
    # Times per layer are those of a model with one layer.
    scale = file.layers if table.per_layer else 1
    for stage, times in enumerate(file.stages or [file.per_layer]):
        assert times is not None, "a file has one or the other"
        for kind in ("forward", "backward"):
            points = [p for p in table.points if p.kind == kind and (table.per_layer or p.stage == stage)]
            residuals = getattr(times.residuals, kind)
            if points and residuals is not None:
                form = getattr(latency, kind)[stage]
                error = _median_error([form.seconds(p.shape) / scale for p in points], points)
                if error > max(LEAST_TOLERANCE, residuals.p95_rel_error):
                    raise UserError(
                        f"{path}: stage {stage}, {kind}: {file.points} is off by {error:.1%} in the median; "
                        "these coefficients were not fitted to it"
                    )
    return f"in order; it fits the {len(table.points)} points of {file.points}"


def _median_error(predicted: Sequence[float], points: Sequence[Measured]) -> float:
    seconds = np.array([point.seconds for point in points])
    return float(np.median(np.abs(np.array(predicted) / seconds - 1.0)))
