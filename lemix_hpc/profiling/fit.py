"""Fit stage times to measured points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from lemix_hpc.policy.latency import Affine, Shape


@dataclass(frozen=True, slots=True)
class Point:
    """One measured pass: what was computed, and how many seconds it took."""

    shape: Shape
    seconds: float


def fit_affine(points: Sequence[Point]) -> Affine:
    """Non-negative least squares of the relative error, over a + b sum(l) + c sum(l^2) + d sum(kv).

    Weighting every point by 1 / time makes a short pass count as much as a long one. Raises ValueError without points or
    with times that are not positive and finite.
    """
    if not points or not all(0 < point.seconds < math.inf for point in points):
        raise ValueError("a fit needs points, all with positive and finite times")
    seconds = np.array([point.seconds for point in points])
    terms = np.array([[1.0, p.shape.tokens, p.shape.squares, p.shape.cached] for p in points])
    scale = np.maximum(terms.max(axis=0), 1.0)
    solution, _ = nnls(terms / scale / seconds[:, None], np.ones(len(points)))
    return Affine(*(float(value) for value in solution / scale))
