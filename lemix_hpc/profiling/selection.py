"""Choose a form by cross-validation: every point is predicted by a fit that has not seen it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from lemix_hpc.policy.latency import StageTime
from lemix_hpc.profiling.coefficients import Residuals
from lemix_hpc.profiling.estimate import (
    Point,
    distinct_terms,
    fit_affine,
    fit_interpolated,
    fit_quadratic,
    fit_roofline,
)
from lemix_hpc.profiling.points import Measured

# From the simplest to the most flexible.
FORMS: Mapping[str, Callable[[Sequence[Point]], StageTime]] = MappingProxyType(
    {
        "quadratic": fit_quadratic,
        "affine-quadratic": fit_affine,
        "roofline": fit_roofline,
        "interpolated": fit_interpolated,
    }
)

NEGLIGIBLE = 1e-3
"""A difference of mean relative errors that is no reason for another form."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One form, fitted to all points. `held_out`: for each of them the seconds predicted by the fit without its fold."""

    name: str
    form: StageTime
    held_out: tuple[float, ...]
    residuals: Residuals


def coefficients_of(name: str, points: Sequence[Measured]) -> int:
    """How many coefficients of a form the points determine; its curve aside, for that has as many as there are points."""
    terms = distinct_terms(_plain(points))
    return {"quadratic": 1, "affine-quadratic": sum(terms[:4])}.get(name, sum(terms) + 1)


def candidate(name: str, points: Sequence[Measured], *, folds: int, seed: int) -> Candidate:
    """Fit one form and cross-validate it. Points of the same size are in the same fold."""
    plain = _plain(points)
    fold = _folds(points, folds, seed)
    held_out = np.zeros(len(points))
    for number in range(max(fold) + 1):
        fitted = FORMS[name]([point for point, its in zip(plain, fold, strict=True) if its != number])
        for place, its in enumerate(fold):
            if its == number:
                held_out[place] = fitted.seconds(plain[place].shape)
    residuals = _residuals(held_out, np.array([p.seconds for p in points]), max(fold) + 1)
    return Candidate(name, FORMS[name](plain), tuple(map(float, held_out)), residuals)


def choose(candidates: Sequence[Candidate], points: Sequence[Measured]) -> Candidate:
    """The simplest form whose mean relative error is not worse than the best one's by more than a standard error.

    `candidates` go from simple to flexible. The standard error is that of the difference, point by point, since what
    disturbs a point disturbs it for all forms.
    """
    seconds = np.array([point.seconds for point in points])
    errors = [np.abs(np.array(c.held_out) / seconds - 1.0) for c in candidates]
    best = min(errors, key=lambda each: float(each.mean()))
    for each, its in zip(candidates, errors, strict=True):
        worse = its - best
        if worse.mean() <= max(NEGLIGIBLE, worse.std() / math.sqrt(len(worse))):
            return each
    raise ValueError("no candidates to choose from")


def _plain(points: Sequence[Measured]) -> list[Point]:
    return [Point(point.shape, point.seconds) for point in points]


def _folds(points: Sequence[Measured], folds: int, seed: int) -> list[int]:
    """The fold of each point: sizes are shuffled and dealt out."""
    sizes = sorted({point.size for point in points})
    order = np.random.default_rng(seed).permutation(len(sizes))
    fold = {sizes[index]: place % folds for place, index in enumerate(order)}
    return [fold[point.size] for point in points]


def _residuals(predicted: NDArray[np.float64], seconds: NDArray[np.float64], folds: int) -> Residuals:
    errors = np.abs(predicted / seconds - 1.0)
    spread = float(((seconds - seconds.mean()) ** 2).sum())
    return Residuals(
        points=len(seconds),
        folds=folds,
        median_rel_error=float(np.median(errors)),
        p95_rel_error=float(np.percentile(errors, 95)),
        max_rel_error=float(errors.max()),
        r2=1.0 - float(((predicted - seconds) ** 2).sum()) / spread if spread > 0.0 else None,
    )
