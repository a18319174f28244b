"""The coefficients of each form from measured points: robust least squares of the relative error, none negative.

An error is relative to the longer of the predicted and the measured time: a short pass counts as much as a long one, and
one that was measured far too short no more than one measured too long. Errors well above `USUAL_ERROR` count by their size
and not by its square (soft L1), so that a few disturbed points do not bend the fit. A coefficient that the
points cannot tell from those before it is 0: with one batch size, say, what a sequence costs is part of what a pass costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lemix_hpc.policy.latency import Affine, Shape
from lemix_hpc.policy.latency_forms import Interpolated, Quadratic, Roofline

Floats = NDArray[np.float64]
USUAL_ERROR = 0.05
REWEIGHTINGS = 20
SHARPEST = 16.0
SHARPNESS_STARTS = (1.5, 4.0)
PRIOR_OF_ROOF = 0.01
"""How many points the roofline counts as at each knot of the curve."""
MOST_KNOTS = 100


@dataclass(frozen=True, slots=True)
class Point:
    """One measured pass: what was computed, and how many seconds it took."""

    shape: Shape
    seconds: float


def distinct_terms(points: Sequence[Point]) -> tuple[bool, ...]:
    """Which of 1, sum(l), sum(l^2), sum(kv) and prefilling sequences the points can tell from those before them."""
    terms = _terms(points)
    scaled = terms / np.maximum(terms.max(axis=0), 1.0)
    kept: list[int] = []
    for column in range(scaled.shape[1]):
        if np.linalg.matrix_rank(scaled[:, [*kept, column]], tol=1e-9 * len(points)) > len(kept):
            kept.append(column)
    return tuple(column in kept for column in range(scaled.shape[1]))


def fit_quadratic(points: Sequence[Point]) -> Quadratic:
    """eta of the paper's form. Raises ValueError without points, or with times that are not positive and finite."""
    seconds = _seconds(points)
    return Quadratic(float(_solve(_terms(points)[:, [2]], seconds)[0]))


def fit_affine(points: Sequence[Point]) -> Affine:
    """a, b, c and d. Raises as `fit_quadratic`."""
    seconds = _seconds(points)
    return Affine(*(float(value) for value in _solve_distinct(points, seconds)[:4]))


def fit_roofline(points: Sequence[Point]) -> Roofline:
    """All of a, b, p, c, d and e, from the better of two starts next to the affine fit. Raises as `fit_quadratic`."""
    from scipy.optimize import least_squares

    seconds, terms = _seconds(points), _terms(points)
    distinct = np.array(distinct_terms(points))
    # In units of what a term can be at most without exceeding some time, all unknowns are of the size of one.
    units = 1.0 / np.maximum((terms / seconds[:, None]).max(axis=0), 1e-300)
    near = np.clip(_solve_distinct(points, seconds) / units, [0.1, 0.1, 1e-9, 1e-9, 1e-9], None)

    def coefficients(unknowns: Floats) -> Floats:
        values: Floats = np.zeros(5)
        values[distinct] = unknowns[:-1] * units[distinct]
        return values

    def errors(unknowns: Floats) -> Floats:
        a, b, *linear = coefficients(unknowns)
        roof = _roof(a, b, unknowns[-1], terms[:, 1])
        return _errors(roof + terms[:, 2:] @ np.array(linear), seconds)

    lower = np.append(np.zeros(distinct.sum()), 1.0)
    upper = np.append(np.full(distinct.sum(), np.inf), SHARPEST)
    fits: list[Any] = [
        least_squares(errors, np.append(near[distinct], p), bounds=(lower, upper), loss="soft_l1", f_scale=USUAL_ERROR)
        for p in SHARPNESS_STARTS
    ]
    best = min(fits, key=lambda fit: fit.cost).x
    a, b, c, d, e = (float(value) for value in coefficients(best))
    return Roofline(a, b, float(best[-1]), c, d, e)


def fit_interpolated(points: Sequence[Point]) -> Interpolated:
    """A curve through the token counts of the points, with c, d and e; the roofline is its shape outside. Raises as above.

    The unknowns are the curve's first value and its rises. A weak prior for the roofline settles what the points leave open,
    such as how much of a single sequence's time goes with its length and how much with the square of it.
    """
    seconds = _seconds(points)
    outside = fit_roofline(points)
    tokens = np.array([point.shape.tokens for point in points], dtype=float)
    knots = _knots(tokens)
    distinct = np.array(distinct_terms(points)[2:])
    columns = np.hstack([_rises(tokens, knots), _terms(points)[:, 2:][:, distinct]])
    roof = _roof(outside.a, outside.b, outside.p, knots)
    prior = np.zeros((len(knots), columns.shape[1]))
    prior[:, : len(knots)] = np.tril(np.ones((len(knots), len(knots))))
    solution = _solve(columns, seconds, prior[roof > 0], roof[roof > 0])
    curve = np.cumsum(solution[: len(knots)])
    linear = np.zeros(3)
    linear[distinct] = solution[len(knots) :]
    c, d, e = (float(value) for value in linear)
    return Interpolated(
        tuple(int(knot) for knot in knots),
        tuple(float(value) for value in curve),
        Roofline(outside.a, outside.b, outside.p, c, d, e),
    )


def _seconds(points: Sequence[Point]) -> Floats:
    if not points or not all(0 < point.seconds < math.inf for point in points):
        raise ValueError("a fit needs points, all with positive and finite times")
    return np.array([point.seconds for point in points])


def _terms(points: Sequence[Point]) -> Floats:
    """One row per point: 1, sum(l), sum(l^2), sum(kv), prefilling sequences."""
    shapes = [point.shape for point in points]
    return np.array([[1.0, s.tokens, s.squares, s.cached, s.prefills] for s in shapes])


def _solve_distinct(points: Sequence[Point], seconds: Floats) -> Floats:
    """The coefficients of all five terms; those that cannot be told apart, and the one of prefills, are 0."""
    distinct = np.array(distinct_terms(points))
    distinct[4] = False
    solution = np.zeros(5)
    solution[distinct] = _solve(_terms(points)[:, distinct], seconds)
    return solution


def _solve(columns: Floats, seconds: Floats, prior: Floats | None = None, expected: Floats | None = None) -> Floats:
    """Non-negative x with columns @ x near `seconds`, and weakly prior @ x near `expected`.

    Reweighting ends at the minimum that is next to its start: where all errors count relative to what was measured, one point
    measured far too short outweighs the others, and where all count the same, one measured far too long. The better one is it.
    """
    extra, target = np.zeros((0, columns.shape[1])), np.zeros(0)
    if prior is not None and expected is not None:
        extra, target = prior / expected[:, None] * PRIOR_OF_ROOF**0.5, np.full(len(expected), PRIOR_OF_ROOF**0.5)

    def cost(solution: Floats) -> float:
        errors = _errors(columns @ solution, seconds) / USUAL_ERROR
        robust = 2.0 * USUAL_ERROR**2 * (np.sqrt(1.0 + errors**2) - 1.0).sum()
        return float(robust + ((extra @ solution - target) ** 2).sum())

    starts = (1.0 / seconds, np.full(len(seconds), 1.0 / seconds.max()))
    return min((_reweighted(columns, seconds, extra, target, weights) for weights in starts), key=cost)


def _reweighted(columns: Floats, seconds: Floats, extra: Floats, target: Floats, weights: Floats) -> Floats:
    """Least squares with weights that follow from the errors before."""
    from scipy.optimize import nnls  # it takes long to import, and runs with coefficient files fit nothing

    solution: Floats = np.zeros(columns.shape[1])
    for _ in range(REWEIGHTINGS):
        matrix = np.vstack([columns * weights[:, None], extra])
        scale = np.maximum(matrix.max(axis=0), 1e-300)
        solution = nnls(matrix / scale, np.append(weights * seconds, target))[0] / scale
        predicted = columns @ solution
        robust = (1.0 + (_errors(predicted, seconds) / USUAL_ERROR) ** 2) ** -0.25
        weights = robust / np.maximum(predicted, seconds)
    return solution


def _roof(a: float, b: float, p: float, tokens: Floats) -> Floats:
    """`Roofline.roof` of many token counts."""
    longer, shorter = np.maximum(a, b * tokens), np.minimum(a, b * tokens)
    # Where both are 0 the roof is 0 too.
    roof: Floats = longer * (1.0 + (shorter / np.maximum(longer, 1e-300)) ** p) ** (1.0 / p)
    return roof


def _errors(predicted: Floats, seconds: Floats) -> Floats:
    errors: Floats = (predicted - seconds) / np.maximum(predicted, seconds)
    return errors


def _knots(tokens: Floats) -> Floats:
    """The token counts, or as many as a curve may have, spread evenly among them."""
    counts: Floats = np.unique(tokens)
    if len(counts) > MOST_KNOTS:
        counts = counts[np.linspace(0, len(counts) - 1, MOST_KNOTS).round().astype(int)]
    return counts


def _rises(tokens: Floats, knots: Floats) -> Floats:
    """How much of the first value and of each rise between knots is in the curve at each of `tokens`."""
    shares = np.clip((tokens[:, None] - knots[:-1]) / np.diff(knots), 0.0, 1.0)
    return np.hstack([np.ones((len(tokens), 1)), shares])
