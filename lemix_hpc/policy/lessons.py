"""What passes teach of the stage times of one kind of node, as records: compiled, since every pass of every node comes here.

Recursive least squares with forgetting, see `lemix_hpc.policy.recalibration`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lemix_hpc.policy import drift
from lemix_hpc.policy.drift import FEWEST, LARGEST_RATIO, MEMORY
from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.policy.latency import LatencyModel
from lemix_hpc.policy.state import Floats, Ints, Records

LARGEST_GAIN = 10.0
LARGEST_STEP = 1.2
"""A pass changes a gain at most by this factor, up or down."""
TRUSTED_ERROR = 0.3
"""Relative errors up to here count in full; beyond, a pass has no more pull than one with this error (Huber)."""
PRIOR_OF_DIFFERENCES = 0.1
PRIOR_OF_LEVEL = 0.01
"""Weights of the prior, in passes: for the gains to be equal, and for their mean to be 1."""
SWEEPS = 4
USUAL_TERMS = 4

relative_error = compiled(drift.relative_error)


def make_lessons(latency: LatencyModel) -> Records:
    """Nothing is learned yet: (3, stages), the first index is the direction of a pass. Each has the `terms` of its form, as the
    coefficients of `StageTime.row`, and a gain for each of them."""
    directions = latency.forward, latency.backward, latency.forward
    size = max(USUAL_TERMS, *(form.count for forms in directions for form in forms))
    fields: list[Any] = [
        ("count", "i8"),  # of terms; the others are nothing
        ("terms", "f8", (size, 5)),
        ("gains", "f8", (size,)),
        ("before", "f8", (size,)),  # the last pass
        ("information", "f8", (size, size)),
        ("target", "f8", (size,)),
        ("passes", "i8"),
        ("log_ratio", "f8"),  # running means: of the logarithm of real over given times, and of relative errors
        ("error", "f8"),
        ("error_after", "f8"),
        ("drifting", "?"),
    ]
    lessons = np.zeros((3, latency.stages), np.dtype(fields, align=True))
    lessons["gains"] = 1.0
    for direction, forms in enumerate(directions):
        for stage, form in enumerate(forms):
            lesson = lessons[direction, stage]
            lesson["count"] = form.count
            for term, alone in enumerate(np.eye(form.count)):
                lesson["terms"][term] = form.row(alone.tolist())
    return lessons


@compiled
def expect(lessons: Records, direction: int, first: int, sizes: Floats, levels: Floats, expected: Floats) -> None:
    """`expected`: what a pass should take on stages from the `first` on, by what was learned so far [s]. `sizes` and `levels`
    as in `learn`."""
    for position in range(expected.size):
        _, expected[position] = _seconds(lessons[direction, first + position], sizes, levels[position])


@compiled
def learn(
    lessons: Records,
    direction: int,
    first: int,
    sizes: Floats,
    levels: Floats,
    seconds: Floats,
    expected: Floats,
    limit: float,
) -> bool:
    """A pass has taken so many `seconds` on stages from the `first` on. `sizes`: (3,), its squares, cached tokens and
    prefills; `levels`: what its tokens cost on each of the stages, in the unit of its form. A stage that has no time for it
    learns nothing.

    `expected` is set to what was `expect`ed. Returns whether there is an alarm, or one ends: errors exceed `limit`.
    """
    alarm = False
    for position in range(seconds.size):
        lesson, took = lessons[direction, first + position], seconds[position]
        given, expected[position] = _seconds(lesson, sizes, levels[position])
        if given <= 0.0:
            continue
        lesson.passes += 1
        share = 1.0 / min(lesson.passes, MEMORY)
        ratio = min(max(took / given, 1.0 / LARGEST_RATIO), LARGEST_RATIO)
        lesson.log_ratio += share * (np.log(ratio) - lesson.log_ratio)
        lesson.error += share * (relative_error(given, took) - lesson.error)
        lesson.error_after += share * (relative_error(expected[position], took) - lesson.error_after)
        alarm |= lesson.drifting or (lesson.passes >= FEWEST and lesson.error > limit)
        _take_in(lesson, sizes, levels[position], given, expected[position], took)
        _solve(lesson)
    return alarm


@compiled
def note_ratios(
    passes: Ints, log_ratio: Floats, node: int, first: int, seconds: Floats, expected: Floats, every: int
) -> bool:
    """Keep running means of the logarithm of real over expected times, (stages, nodes), after so many `passes`; an expected
    time of 0 says nothing. Returns whether one of these stages has a whole memory of passes and every so many more."""
    due = False
    for position in range(seconds.size):
        if expected[position] > 0.0:
            stage = first + position
            passes[stage, node] += 1
            ratio = min(max(seconds[position] / expected[position], 1.0 / LARGEST_RATIO), LARGEST_RATIO)
            log_ratio[stage, node] += (np.log(ratio) - log_ratio[stage, node]) / min(passes[stage, node], MEMORY)
            due |= passes[stage, node] >= MEMORY and passes[stage, node] % every == 0
    return due


@inlined
def _part(lesson: Any, term: int, sizes: Floats, level: float) -> float:
    """A term of the given time [s]."""
    row = lesson.terms[term]
    seconds: float = row[0] + row[1] * level + row[2] * sizes[0] + row[3] * sizes[1] + row[4] * sizes[2]
    return seconds


@inlined
def _seconds(lesson: Any, sizes: Floats, level: float) -> tuple[float, float]:
    """The given time and the corrected one."""
    given = corrected = 0.0
    for term in range(lesson.count):
        part = _part(lesson, term, sizes, level)
        given += part
        corrected += lesson.gains[term] * part
    return given, corrected


@inlined
def _take_in(lesson: Any, sizes: Floats, level: float, given: float, expected: float, took: float) -> None:
    weight = TRUSTED_ERROR / max(TRUSTED_ERROR, abs(took - expected) / expected)
    keep = 1.0 - 1.0 / MEMORY
    for i in range(lesson.count):
        mine = _part(lesson, i, sizes, level) / given
        for j in range(lesson.count):
            other = _part(lesson, j, sizes, level) / given
            lesson.information[i, j] = keep * lesson.information[i, j] + weight * mine * other
        lesson.target[i] = keep * lesson.target[i] + weight * mine * took / given


@inlined
def _solve(lesson: Any) -> None:
    """Towards the minimum by coordinate descent, within the bounds of a gain and of a step from where it was."""
    count = lesson.count
    # The prior as a matrix: PRIOR_OF_DIFFERENCES on deviations from the mean gain, PRIOR_OF_LEVEL on the mean.
    shared = (PRIOR_OF_LEVEL - PRIOR_OF_DIFFERENCES) / count
    for i in range(count):
        lesson.before[i] = lesson.gains[i]
    for _ in range(SWEEPS):
        for i in range(count):
            total = 0.0
            for j in range(count):
                if j != i:
                    total += (shared + lesson.information[i, j]) * lesson.gains[j]
            curvature = lesson.information[i, i] + PRIOR_OF_DIFFERENCES + shared
            best = (lesson.target[i] + PRIOR_OF_LEVEL - total) / curvature
            lower = max(1.0 / LARGEST_GAIN, lesson.before[i] / LARGEST_STEP)
            upper = min(LARGEST_GAIN, lesson.before[i] * LARGEST_STEP)
            lesson.gains[i] = min(max(best, lower), upper)


@compiled
def correct(lessons: Records, direction: int, first: int, linear: Records) -> None:
    """Put the corrected coefficients of stages from the `first` on into `linear`, (stages, 5); where nothing is learned they
    stay."""
    for position in range(linear.shape[0]):
        lesson = lessons[direction, first + position]
        if lesson.passes > 0:
            for column in range(5):
                total = 0.0
                for term in range(lesson.count):
                    total += lesson.gains[term] * lesson.terms[term, column]
                linear[position, column] = total
