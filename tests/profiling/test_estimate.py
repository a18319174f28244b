import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lemix_hpc.policy.latency import Affine, Shape, StageTime
from lemix_hpc.policy.latency_forms import Interpolated, Quadratic, Roofline
from lemix_hpc.profiling.estimate import (
    MOST_KNOTS,
    Point,
    distinct_terms,
    fit_affine,
    fit_interpolated,
    fit_quadratic,
    fit_roofline,
)

SHAPES = [Shape.of([length] * rows) for length in (8, 32, 128, 512, 2048) for rows in (1, 4, 16)]
DECODES = [Shape.of([1] * rows, [cached] * rows) for cached in (64, 512, 4096) for rows in (1, 8)]
ALL = SHAPES + DECODES
FITS: list[Callable[[Sequence[Point]], StageTime]] = [fit_quadratic, fit_affine, fit_roofline, fit_interpolated]


def measured(times: StageTime, shapes: list[Shape], noise: float = 0.0, seed: int = 0) -> list[Point]:
    """Points whose times are off by a factor within 1 +- `noise`."""
    factors = np.random.default_rng(seed).uniform(1 - noise, 1 + noise, len(shapes))
    return [Point(shape, times.seconds(shape) * factor) for shape, factor in zip(shapes, factors, strict=True)]


# Seconds as on a GPU: each term is the largest one somewhere in the shapes above.
quadratics = st.builds(Quadratic, st.floats(1e-10, 1e-8))
affines = st.builds(Affine, st.floats(1e-4, 1e-3), st.floats(1e-6, 1e-5), st.floats(1e-9, 1e-8), st.floats(1e-7, 1e-6))
rooflines = st.builds(
    Roofline,
    st.floats(1e-4, 1e-3),
    st.floats(1e-6, 1e-5),
    st.floats(1.2, 6),
    st.floats(1e-9, 1e-8),
    st.floats(1e-7, 1e-6),
    st.floats(1e-5, 1e-4),
)


@given(quadratics)
def test_exact_points_give_eta_back(times: Quadratic) -> None:
    assert fit_quadratic(measured(times, SHAPES)).eta == pytest.approx(times.eta, rel=1e-6)


@given(affines)
def test_exact_points_give_affine_coefficients_back(times: Affine) -> None:
    fitted = fit_affine(measured(times, ALL))
    assert (fitted.a, fitted.b, fitted.c, fitted.d) == pytest.approx((times.a, times.b, times.c, times.d), rel=1e-6)


@settings(max_examples=30)
@given(rooflines)
def test_exact_points_give_roofline_coefficients_back(times: Roofline) -> None:
    fitted = fit_roofline(measured(times, ALL))
    for name in ("a", "b", "p", "c", "d", "e"):
        assert getattr(fitted, name) == pytest.approx(getattr(times, name), rel=1e-3)


@st.composite
def curves(draw: st.DrawFn) -> Interpolated:
    """A curve with steps, at the token counts of the shapes above."""
    roofline = draw(rooflines)
    knots = sorted({shape.tokens for shape in ALL})
    rises = draw(st.lists(st.floats(0.0, 1.0), min_size=len(knots), max_size=len(knots)))
    curve = np.maximum.accumulate([roofline.roof(k) * (0.8 + 0.4 * r) for k, r in zip(knots, rises, strict=True)])
    return Interpolated(tuple(knots), tuple(map(float, curve)), roofline)


@settings(max_examples=30)
@given(curves())
def test_exact_points_give_a_curve_back(times: Interpolated) -> None:
    """Up to the weak prior for a roofline, which the curve departs from by a fifth and the fit by a third of that."""
    fitted = fit_interpolated(measured(times, ALL))
    assert fitted.knots == times.knots
    for shape in ALL:
        assert fitted.seconds(shape) == pytest.approx(times.seconds(shape), rel=0.07)


@settings(max_examples=20)
@given(
    st.sampled_from([(fit_quadratic, quadratics), (fit_affine, affines), (fit_roofline, rooflines)]).flatmap(
        lambda pair: st.tuples(st.just(pair[0]), pair[1])
    ),
    st.integers(0, 999),
)
def test_noise_moves_predictions_no_further_than_itself(
    case: tuple[Callable[[Sequence[Point]], StageTime], StageTime], seed: int
) -> None:
    fit, times = case
    fitted = fit(measured(times, SHAPES * 4 if isinstance(times, Quadratic) else ALL * 4, noise=0.05, seed=seed))
    for shape in SHAPES:
        assert fitted.seconds(shape) == pytest.approx(times.seconds(shape), rel=0.05)


@settings(max_examples=20)
@given(curves(), st.integers(0, 999))
def test_noise_moves_a_curve_little_further_than_itself(times: Interpolated, seed: int) -> None:
    fitted = fit_interpolated(measured(times, ALL * 4, noise=0.05, seed=seed))
    errors = [abs(fitted.seconds(shape) / times.seconds(shape) - 1) for shape in ALL]
    assert max(errors) < 0.08


@settings(max_examples=20)
@given(affines, st.integers(0, len(ALL) - 1), st.sampled_from([0.1, 10.0]))
@example(Affine(4e-4, 9.2e-6, 6.8e-9, 1e-7), ALL.index(Shape.of([1] * 8, [4096] * 8)), 0.1)
def test_a_disturbed_point_hardly_bends_the_fit(times: Affine, place: int, factor: float) -> None:
    points = measured(times, ALL * 3)
    points[place] = Point(points[place].shape, points[place].seconds * factor)
    fitted = fit_affine(points)
    for shape in ALL:
        assert fitted.seconds(shape) == pytest.approx(times.seconds(shape), rel=0.12)


def numbers_in(form: StageTime) -> list[float]:
    match form:
        case Quadratic(eta):
            return [eta]
        case Affine(a, b, c, d):
            return [a, b, c, d]
        case Roofline(a, b, p, c, d, e):
            return [a, b, p - 1, c, d, e]
        case Interpolated(_, curve, outside):
            return [curve[0], *np.diff(curve), *numbers_in(outside)]
    raise TypeError(form)


@settings(max_examples=60)
@given(st.sampled_from(FITS), st.lists(st.floats(1e-5, 1), min_size=1, max_size=len(ALL)))
def test_whatever_was_measured_no_coefficient_is_negative_and_no_curve_falls(
    fit: Callable[[Sequence[Point]], StageTime], seconds: list[float]
) -> None:
    fitted = fit([Point(shape, time) for shape, time in zip(ALL, seconds, strict=False)])
    values = numbers_in(fitted)
    assert min(values) >= 0 and all(map(math.isfinite, values))


def test_a_short_pass_counts_as_much_as_a_long_one() -> None:
    """Times of 1 % more and 1 % less on passes of 1 ms and 1 s: both errors are shared evenly."""
    pairs = [(Shape(0, 0), 1.0), (Shape(0, 0), 1.02)]
    assert fit_affine([Point(*pair) for pair in pairs]).a == pytest.approx(1.01, rel=1e-3)
    times = Affine(1e-3, 1e-3, 0.0)
    points = [Point(s, times.seconds(s) * f) for s in (Shape.of([1]), Shape.of([1000])) for f in (0.99, 1.01)]
    fitted = fit_affine(points)
    for shape in (Shape.of([1]), Shape.of([1000])):
        assert fitted.seconds(shape) == pytest.approx(times.seconds(shape), rel=1e-3)


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        (ALL, (True, True, True, True, True)),
        (SHAPES, (True, True, True, False, True)),
        (DECODES, (True, True, False, True, False)),
        ([Shape.of([length]) for length in (8, 16, 32, 64)], (True, True, True, False, False)),
        ([Shape.of([8] * rows) for rows in (1, 2, 3)], (True, True, False, False, False)),
        ([Shape.of([8])] * 3, (True, False, False, False, False)),
    ],
)
def test_terms_that_the_points_cannot_tell_apart(shapes: list[Shape], expected: tuple[bool, ...]) -> None:
    points = [Point(shape, 1.0) for shape in shapes]
    assert distinct_terms(points) == expected


def test_one_batch_size_leaves_the_split_of_a_curve_to_the_roofline() -> None:
    """From single sequences alone, four at once are still predicted to cost less than one of four times the length."""
    times = Roofline(3e-4, 2e-6, 3.0, 1e-9)
    fitted = fit_interpolated(measured(times, [Shape.of([length]) for length in (16, 64, 256, 512, 1024, 2048, 4096)]))
    four = Shape.of([1024] * 4)
    assert fitted.seconds(four) == pytest.approx(times.seconds(four), rel=0.03)


def test_a_curve_has_no_more_knots_than_it_may() -> None:
    times = Roofline(3e-4, 2e-6, 3.0, 1e-9)
    shapes = [Shape.of([length]) for length in range(10, 10 + 3 * MOST_KNOTS)]
    fitted = fit_interpolated(measured(times, shapes))
    assert len(fitted.knots) == MOST_KNOTS
    assert (fitted.knots[0], fitted.knots[-1]) == (10, 9 + 3 * MOST_KNOTS)
    assert [fitted.seconds(s) for s in shapes] == pytest.approx([times.seconds(s) for s in shapes], rel=0.01)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("seconds", [[], [1.0, 0.0], [-1.0], [math.nan], [math.inf]])
def test_a_fit_needs_positive_finite_times(fit: Callable[[Sequence[Point]], StageTime], seconds: list[float]) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        fit([Point(Shape.of([8]), time) for time in seconds])
