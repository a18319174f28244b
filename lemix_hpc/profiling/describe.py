"""Coefficients as a person would say them."""

from __future__ import annotations

from lemix_hpc.policy.latency import Affine, StageTime
from lemix_hpc.policy.latency_forms import Interpolated, Quadratic, Roofline
from lemix_hpc.profiling.coefficients import Residuals


def describe(form: StageTime) -> str:
    """A form in a line: every coefficient with its unit."""
    match form:
        case Quadratic(eta):
            return f"eta {duration(eta)}/token^2"
        case Affine(a, b, c, d):
            return f"a {duration(a)}, b {duration(b)}/token, c {duration(c)}/token^2, d {duration(d)}/cached token"
        case Roofline(a, b, p, c, d, e):
            return (
                f"a {duration(a)}, b {duration(b)}/token, p {p:.3g}, c {duration(c)}/token^2, "
                f"d {duration(d)}/cached token, e {duration(e)}/prefill"
            )
        case Interpolated(knots, curve, outside):
            return (
                f"curve of {len(knots)} points from {duration(curve[0])} at {knots[0]} tokens "
                f"to {duration(curve[-1])} at {knots[-1]}; {describe(outside)}"
            )
    raise TypeError(f"no form of stage times: {form!r}")


def describe_residuals(residuals: Residuals) -> str:
    """How good a fit is, in a line."""
    r2 = "" if residuals.r2 is None else f", R^2 {residuals.r2:.4f}"
    return (
        f"relative error median {residuals.median_rel_error:.1%}, 95th percentile {residuals.p95_rel_error:.1%}, "
        f"largest {residuals.max_rel_error:.1%}{r2} ({residuals.points} points, {residuals.folds} folds)"
    )


def duration(seconds: float) -> str:
    """Three digits and a fitting unit."""
    if seconds == 0.0:
        return "0"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-12:.3g} ps"
