"""How the forms of stage times are written in a coefficient file: one section each, told apart by its `form`."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lemix_hpc.policy.latency import Affine, StageTime
from lemix_hpc.policy.latency_forms import Interpolated, Quadratic, Roofline

FormName = Literal["quadratic", "affine-quadratic", "roofline", "interpolated"]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class QuadraticBlock(Section):
    """eta [s/token^2]."""

    form: Literal["quadratic"] = "quadratic"
    eta: NonNegative

    def time(self) -> StageTime:
        return Quadratic(self.eta)


class Coefficients(Section):
    """a [s], b [s/token], c [s/token^2], d [s/cached token]; see `lemix_hpc.policy.latency.Affine`."""

    form: Literal["affine-quadratic"] = "affine-quadratic"
    a: NonNegative
    b: NonNegative
    c: NonNegative
    d: NonNegative = 0.0

    def time(self) -> StageTime:
        return Affine(self.a, self.b, self.c, self.d)


class RooflineBlock(Section):
    """a [s], b [s/token], p, c [s/token^2], d [s/cached token], e [s/prefill]; see `latency_forms.Roofline`."""

    form: Literal["roofline"] = "roofline"
    a: NonNegative
    b: NonNegative
    p: Annotated[float, Field(ge=1.0)]
    c: NonNegative = 0.0
    d: NonNegative = 0.0
    e: NonNegative = 0.0

    def roofline(self) -> Roofline:
        return Roofline(self.a, self.b, self.p, self.c, self.d, self.e)

    def time(self) -> StageTime:
        return self.roofline()


class InterpolatedBlock(Section):
    """The curve through `tokens` and `seconds`, and the roofline's coefficients; see `latency_forms.Interpolated`."""

    form: Literal["interpolated"] = "interpolated"
    tokens: Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=1)]
    seconds: list[NonNegative]
    a: NonNegative
    b: NonNegative
    p: Annotated[float, Field(ge=1.0)]
    c: NonNegative = 0.0
    d: NonNegative = 0.0
    e: NonNegative = 0.0

    @model_validator(mode="after")
    def _a_curve(self) -> Self:
        if len(self.tokens) != len(self.seconds):
            raise ValueError(f"{len(self.tokens)} tokens need as many seconds, found {len(self.seconds)}")
        if any(left >= right for left, right in pairwise(self.tokens)):
            raise ValueError("tokens must increase")
        if any(left > right for left, right in pairwise(self.seconds)):
            raise ValueError("seconds must not fall: more tokens never take less")
        return self

    def time(self) -> StageTime:
        outside = Roofline(self.a, self.b, self.p, self.c, self.d, self.e)
        return Interpolated(tuple(self.tokens), tuple(self.seconds), outside)


Block = Annotated[
    QuadraticBlock | Coefficients | RooflineBlock | InterpolatedBlock,
    Field(discriminator="form"),
]


def block(form: StageTime) -> QuadraticBlock | Coefficients | RooflineBlock | InterpolatedBlock:
    """The section for a form; its `time()` gives the form back."""
    match form:
        case Quadratic(eta):
            return QuadraticBlock(eta=eta)
        case Affine(a, b, c, d):
            return Coefficients(a=a, b=b, c=c, d=d)
        case Roofline(a, b, p, c, d, e):
            return RooflineBlock(a=a, b=b, p=p, c=c, d=d, e=e)
        case Interpolated(knots, curve, Roofline(a, b, p, c, d, e)):
            return InterpolatedBlock(tokens=list(knots), seconds=list(curve), a=a, b=b, p=p, c=c, d=d, e=e)
    raise TypeError(f"no form of stage times: {form!r}")


def with_forms(content: Any) -> Any:
    """The content of a file where each block without a `form` has the file's, which is affine-quadratic by default.

    The file's own form is then gone, unless it is none: that is a mistake to be told.
    """
    if not isinstance(content, dict):
        return content
    form = content.get("form") or "affine-quadratic"

    def filled(times: Any) -> Any:
        if not isinstance(times, dict):
            return times
        blocks = {key: {"form": form, **value} for key, value in times.items() if _is_block(key, value)}
        return {**times, **blocks}

    changed = {key: value for key, value in content.items() if key != "form" or value not in get_args(FormName)}
    if "per_layer" in content:
        changed["per_layer"] = filled(content["per_layer"])
    if isinstance(content.get("stages"), list):
        changed["stages"] = [filled(times) for times in content["stages"]]
    return changed


def _is_block(key: str, value: Any) -> bool:
    return key in ("forward", "backward") and isinstance(value, dict)
