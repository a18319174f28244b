"""Coefficient files and what runs learn: when a file is no longer true, and the file that a run makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lemix_hpc.policy.drift import DEFAULT_LIMIT
from lemix_hpc.policy.events import PassKind
from lemix_hpc.policy.latency import StageTime
from lemix_hpc.policy.latency_forms import Together
from lemix_hpc.policy.memory import Learned
from lemix_hpc.profiling.blocks import block
from lemix_hpc.profiling.coefficients import CoefficientFile, Times

LEAST_LIMIT = 0.25
LARGEST_LIMIT = 0.8


def drift_limit(file: CoefficientFile) -> float:
    """The running relative error that raises an alarm: the largest residual of the fit, within bounds.

    Real passes are never as quiet as a profile, and no running error exceeds 1.
    """
    residuals = [times.residuals for times in file.stages or (file.per_layer,) if times is not None]
    sections = [section for both in residuals for section in (both.forward, both.backward)]
    largest = [section.max_rel_error for section in sections if section is not None]
    return min(max(*largest, LEAST_LIMIT), LARGEST_LIMIT) if largest else DEFAULT_LIMIT


def learned_file(
    file: CoefficientFile, stages: int, learned: Sequence[Learned], provenance: dict[str, Any]
) -> CoefficientFile:
    """The file that a run with so many stages started from, with the times that it learned.

    Forwards are those of serving, or of training where nothing was served. Kinds that did not run keep the file's times.
    Residuals and points are left out: they belong to the old times. So are step times per layer.
    """
    latency, held = file.latency(stages), file.memory(stages)
    gains = {(lesson.stage, lesson.kind): lesson.gains for lesson in learned}

    def corrected(form: StageTime, stage: int, *kinds: PassKind) -> StageTime:
        known = [gains[stage, kind] for kind in kinds if (stage, kind) in gains]
        if known and len(known[0]) > form.count:
            # It was learned of the backward together with a forward that it runs again: each of both is as far off.
            return Together(form, latency.forward[stage]).first_with(known[0])
        return form.with_gains(known[0]) if known else form

    times = []
    for stage, (forward, backward) in enumerate(zip(latency.forward, latency.backward, strict=True)):
        given = file.stages[stage] if file.stages else file.per_layer
        assert given is not None, "a file has one or the other"
        factor = given.backward if isinstance(given.backward, float) else None
        measured = (stage, "backward") in gains
        times.append(
            Times(
                forward=block(corrected(forward, stage, "serve", "forward")),
                backward=factor if factor and not measured else block(corrected(backward, stage, "backward")),
                step_s=given.step_s if file.stages else None,
                memory=held[stage] if held is not None else given.memory,
            )
        )
    changes = {"per_layer": None, "stages": times, "points": None, "provenance": provenance}
    return file.model_copy(update=changes)
