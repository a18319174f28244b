import numpy as np
import pytest

from lemix_hpc.policy.latency import Affine, StageTime
from lemix_hpc.policy.latency_forms import Interpolated, Quadratic, Roofline
from lemix_hpc.profiling.points import Measured
from lemix_hpc.profiling.selection import FORMS, Candidate, candidate, choose, coefficients_of

SIZES = [
    (batch, length) for batch in (1, 2, 4, 8) for length in (16, 32, 64, 128, 256, 512, 1024) if batch * length < 5000
]
STEPS = Interpolated(
    (16, 100, 101, 200, 201, 400, 401, 8192),
    (1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 5.0, 60.0),
    Roofline(1.0, 0.006, 4.0, 1e-6),
)


def measured(times: StageTime, noise: float = 0.0, repeats: int = 1) -> list[Measured]:
    """Points of `times`, off by a factor within 1 +- `noise`."""
    points = [Measured(batch, length, 1.0) for batch, length in SIZES] * repeats
    factors = np.random.default_rng(0).uniform(1 - noise, 1 + noise, len(points))
    return [
        Measured(p.batch, p.length, times.seconds(p.shape) * float(factor))
        for p, factor in zip(points, factors, strict=True)
    ]


def candidates(points: list[Measured]) -> list[Candidate]:
    return [candidate(name, points, folds=10, seed=0) for name in FORMS]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (Quadratic(1e-9), "quadratic"),
        (Affine(3e-4, 2e-6, 1e-9), "affine-quadratic"),
        (Roofline(3e-4, 2e-6, 4.0, 1e-9), "roofline"),
        (Roofline(3e-4, 2e-6, 4.0, 1e-9, 0.0, 3e-5), "roofline"),
        (STEPS, "interpolated"),
    ],
)
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_form_behind_the_points_is_chosen(times: StageTime, expected: str, noise: float) -> None:
    points = measured(times, noise)
    assert choose(candidates(points), points).name == expected


def test_no_point_is_seen_by_the_fit_that_predicts_it() -> None:
    """One wild point changes what is predicted for the others, never the prediction for itself."""
    points = measured(Affine(3e-4, 2e-6, 1e-9), noise=0.05)
    wild = [*points[:-1], Measured(*points[-1].size[:2], points[-1].seconds * 7)]
    before = candidate("affine-quadratic", points, folds=10, seed=0)
    after = candidate("affine-quadratic", wild, folds=10, seed=0)
    assert after.held_out[-1] == before.held_out[-1]
    assert after.held_out[:-1] != before.held_out[:-1]


def test_repeats_of_a_size_are_left_out_together() -> None:
    points = measured(STEPS, noise=0.02, repeats=3)
    held_out = candidate("interpolated", points, folds=1000, seed=0)
    assert held_out.residuals.folds == len(SIZES)
    assert held_out.held_out[: len(SIZES)] == held_out.held_out[len(SIZES) : 2 * len(SIZES)]


def test_residuals_are_of_the_predictions_of_held_out_points() -> None:
    points = measured(Roofline(3e-4, 2e-6, 4.0, 1e-9), noise=0.1)
    found = candidate("affine-quadratic", points, folds=5, seed=3)
    seconds = np.array([p.seconds for p in points])
    errors = np.abs(np.array(found.held_out) / seconds - 1)
    residuals = found.residuals
    assert (residuals.points, residuals.folds) == (len(points), 5)
    assert residuals.median_rel_error == pytest.approx(np.median(errors))
    assert residuals.p95_rel_error == pytest.approx(np.percentile(errors, 95))
    assert residuals.max_rel_error == pytest.approx(errors.max())
    unexplained = ((np.array(found.held_out) - seconds) ** 2).sum()
    assert residuals.r2 == pytest.approx(1 - unexplained / ((seconds - seconds.mean()) ** 2).sum())


def test_equal_times_have_no_variance_to_explain() -> None:
    points = [Measured(batch, length, 0.5) for batch, length in SIZES]
    found = candidate("affine-quadratic", points, folds=5, seed=0)
    assert found.residuals.r2 is None
    assert found.residuals.max_rel_error == pytest.approx(0, abs=1e-9)


def test_coefficients_that_the_points_determine() -> None:
    full = measured(STEPS)
    assert [coefficients_of(name, full) for name in FORMS] == [1, 3, 5, 5]
    with_decode = [*full, *(Measured(batch, 1, 1.0, context) for batch in (1, 4) for context in (16, 64))]
    assert [coefficients_of(name, with_decode) for name in FORMS] == [1, 4, 6, 6]
    single = [p for p in full if p.batch == 1]
    assert [coefficients_of(name, single) for name in FORMS] == [1, 3, 4, 4]
