import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.policy.latency import Affine, Shape
from lemix_hpc.profiling.fit import Point, fit_affine

SHAPES = [Shape.of([length] * rows) for length in (8, 32, 128, 512, 2048) for rows in (1, 4)]
DECODES = [Shape.of([1] * rows, [cached] * rows) for cached in (64, 512, 4096) for rows in (1, 8)]


def measured(times: Affine, shapes: list[Shape], noise: float = 0.0, seed: int = 0) -> list[Point]:
    """Points whose times are off by a factor within 1 +- `noise`."""
    factors = np.random.default_rng(seed).uniform(1 - noise, 1 + noise, len(shapes))
    return [Point(shape, times.seconds(shape) * factor) for shape, factor in zip(shapes, factors, strict=True)]


# Seconds as on a GPU: each term is the largest one somewhere in the shapes above.
true_times = st.builds(
    Affine, st.floats(1e-4, 1e-3), st.floats(1e-6, 1e-5), st.floats(1e-9, 1e-8), st.floats(1e-7, 1e-6)
)


@given(true_times)
def test_exact_points_give_their_coefficients_back(times: Affine) -> None:
    fitted = fit_affine(measured(times, SHAPES + DECODES))
    assert (fitted.a, fitted.b, fitted.c, fitted.d) == pytest.approx((times.a, times.b, times.c, times.d), rel=1e-6)


@given(true_times, st.integers(0, 999))
def test_noise_moves_predictions_no_further_than_itself(times: Affine, seed: int) -> None:
    fitted = fit_affine(measured(times, (SHAPES + DECODES) * 4, noise=0.05, seed=seed))
    for shape in SHAPES + DECODES:
        assert fitted.seconds(shape) == pytest.approx(times.seconds(shape), rel=0.05)


@given(st.lists(st.floats(1e-5, 1), min_size=1, max_size=len(SHAPES)))
def test_no_coefficient_is_negative_whatever_was_measured(seconds: list[float]) -> None:
    fitted = fit_affine([Point(shape, time) for shape, time in zip(SHAPES, seconds, strict=False)])
    assert min(fitted.a, fitted.b, fitted.c, fitted.d) >= 0


def test_a_short_pass_counts_as_much_as_a_long_one() -> None:
    """No line goes through both times of a length: of 1 s and 4 s the relative errors are balanced at 20/17 s."""
    fitted = fit_affine([Point(Shape(0, 0), 1.0), Point(Shape(0, 0), 4.0)])
    assert fitted.a == pytest.approx(20 / 17)


@pytest.mark.parametrize("seconds", [[], [1.0, 0.0], [-1.0], [math.nan], [math.inf]])
def test_a_fit_needs_positive_finite_times(seconds: list[float]) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        fit_affine([Point(Shape.of([8]), time) for time in seconds])
