"""From measured points to a coefficient file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lemix_hpc.config.errors import UserError
from lemix_hpc.profiling.blocks import block
from lemix_hpc.profiling.coefficients import (
    SCHEMA,
    CoefficientFile,
    Links,
    StageMemory,
    Times,
    TimesResiduals,
    Valid,
)
from lemix_hpc.profiling.points import Measured
from lemix_hpc.profiling.selection import FORMS, Candidate, candidate, choose, coefficients_of

FOLDS = 10
SEED = 0
DIGITS = 6


@dataclass(frozen=True, slots=True)
class FittedTimes:
    """The times of one kind of pass on one stage. `candidates`: every form that was tried, simple ones first."""

    points: tuple[Measured, ...]
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FittedStage:
    """The fits of one stage; `backward` is None if no backward was measured."""

    forward: FittedTimes
    backward: FittedTimes | None = None

    @property
    def kinds(self) -> Mapping[str, FittedTimes]:
        """What was fitted, by kind of pass."""
        return {"forward": self.forward} | ({"backward": self.backward} if self.backward else {})


def fit_points(
    points: Sequence[Measured], *, model: str | None = None, folds: int = FOLDS, seed: int = SEED
) -> FittedStage:
    """Fit the points of one stage (or layer): all forms, and for each kind of pass the one that cross-validation chooses.

    `model` takes the choice: quadratic, affine-quadratic, roofline or interpolated. Raises UserError for another name, or
    where there are too few points.
    """
    if model is not None and model not in FORMS:
        raise UserError(f"--model: expected one of {', '.join(FORMS)}, found {model!r}")
    if folds < 2:
        raise UserError(f"--folds: cross-validation needs at least 2 folds, found {folds}")
    forward = [point for point in points if point.kind == "forward"]
    backward = [point for point in points if point.kind == "backward"]
    if not forward:
        raise UserError("there are no forward points; without them a stage has no times")
    return FittedStage(
        _fit(forward, "forward", model, folds, seed),
        _fit(backward, "backward", model, folds, seed) if backward else None,
    )


def make_file(
    stages: Sequence[FittedStage],
    *,
    per_layer: bool,
    hardware: str,
    model: str,
    dtype: str,
    layers: int,
    provenance: Mapping[str, Any],
    points: str | None = None,
    memory: Sequence[StageMemory] = (),
    step_s: Sequence[float] = (),
    links: Links | None = None,
) -> CoefficientFile:
    """The coefficient file of these stages; with `per_layer` of the one layer. It is valid where points are.

    `memory` and `step_s` have an entry for each stage, or none. `points` names the table of raw points beside the file.
    """
    if per_layer and len(stages) != 1:
        raise ValueError(f"times per layer are those of one layer, not of {len(stages)} stages")
    times = [
        _times(stage, memory[s] if memory else None, step_s[s] if step_s else None) for s, stage in enumerate(stages)
    ]
    content = {
        "schema": SCHEMA,
        "hardware": hardware,
        "model": model,
        "dtype": dtype,
        "layers": layers,
        "per_layer": times[0] if per_layer else None,
        "stages": None if per_layer else times,
        "links": links,
        "valid": covered(p for stage in stages for p in stage.forward.points),
        "points": points,
        "provenance": dict(provenance),
    }
    return CoefficientFile.model_validate(content)


def covered(points: Iterable[Measured]) -> Valid:
    """The range of sizes of the points."""
    measured = list(points)
    prefills = [p for p in measured if p.length > 1] or measured
    contexts = [p.context for p in measured if p.context]
    return Valid(
        max_length=max(p.length + p.context for p in measured),
        batch=_range(p.batch for p in measured),
        length=_range(p.length for p in prefills),
        tokens=_range(p.batch * p.length for p in measured),
        context=_range(contexts) if contexts else None,
    )


def _range(sizes: Iterable[int]) -> list[int]:
    found = list(sizes)
    return [min(found), max(found)]


def _times(stage: FittedStage, memory: StageMemory | None, step_s: float | None) -> Times:
    chosen = {kind: fitted.chosen for kind, fitted in stage.kinds.items()}
    times = Times(
        **{kind: block(each.form) for kind, each in chosen.items()},
        residuals=TimesResiduals(**{kind: each.residuals for kind, each in chosen.items()}),
        memory=memory,
        step_s=step_s,
    )
    return Times.model_validate(_rounded(times.model_dump()))


def _rounded(content: Any) -> Any:
    """Numbers as a file shows them; rounding keeps the order of a curve."""
    if isinstance(content, dict):
        return {key: _rounded(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_rounded(value) for value in content]
    return float(f"{content:.{DIGITS}g}") if isinstance(content, float) else content


def _fit(points: Sequence[Measured], kind: str, model: str | None, folds: int, seed: int) -> FittedTimes:
    sizes = len({point.size for point in points})
    warnings = list(_doubts(points, kind))
    names = []
    for name in FORMS:
        needed = coefficients_of(name, points) + 1
        if sizes >= needed:
            names.append(name)
        elif name == model:
            raise UserError(
                f"{kind}: {name} needs points of at least {needed} sizes, found {sizes}; measure more sizes"
            )
        else:
            warnings.append(f"{kind}: {name} left out; it needs points of at least {needed} sizes, found {sizes}")
    if not names:
        raise UserError(
            f"{kind}: a fit and its check need points of at least 2 sizes, found {sizes}; measure more sizes"
        )
    candidates = tuple(candidate(name, points, folds=folds, seed=seed) for name in names)
    named = [each for each in candidates if each.name == model]
    return FittedTimes(tuple(points), named[0] if named else choose(candidates, points), candidates, tuple(warnings))


def _doubts(points: Sequence[Measured], kind: str) -> Iterable[str]:
    """What the points cannot tell, in sentences."""
    if len({point.batch for point in points}) == 1:
        yield f"{kind}: all points have batch {points[0].batch}; predictions for other batch sizes are extrapolated"
    prefills = {point.length for point in points if point.length > 1}
    if not prefills:
        yield f"{kind}: there are only decode steps; prompts are predicted from them, and that is a guess"
    elif len(prefills) == 1:
        yield f"{kind}: all points have length {prefills.pop()}; predictions for other lengths are extrapolated"
    if len({point.seconds for point in points}) == 1:
        yield f"{kind}: all times are equal; check the clock they were measured with"
