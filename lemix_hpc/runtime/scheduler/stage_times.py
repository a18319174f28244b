"""The stage times that a run starts with: those of coefficient files, or measured while it warms up."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.model_sizes import describe
from lemix_hpc.profiling.coefficients import CoefficientFile, load_coefficients
from lemix_hpc.profiling.hardware import Hardware, load_hardware
from lemix_hpc.runtime.scheduler.warm_up import ProbeTimes


def believed_file(recipe: Recipe) -> Path | None:
    """The coefficient file that forecasts start from."""
    return recipe.policy.coefficients or recipe.engine.coefficients


def hardware_of(recipe: Recipe, times: Sequence[ProbeTimes] | None, kinds: tuple[int, ...]) -> Hardware:
    """Stage times of emulated nodes by their files, of nodes that compute by what their kind took. T0 is a property of the
    hardware, and goes by the engine's own file, whatever forecasts start from. `kinds`: that of each node."""
    if times is None:
        return load_hardware(recipe)
    believed, own = tuple(_coefficients(recipe, each) for each in times), recipe.engine.coefficients
    real = believed if own is None else (load_coefficients(own),) * len(times)
    return Hardware(real[0], real, believed, kinds, recipe.recomputing)


def _coefficients(recipe: Recipe, times: ProbeTimes) -> CoefficientFile:
    """Stage times from the file that the recipe names, or those just measured."""
    file = believed_file(recipe)
    if file is not None:
        return load_coefficients(file)
    sizes = describe(recipe.model)
    return times.coefficients(
        hardware=platform.processor() or platform.machine(),
        model=sizes.family,
        dtype=recipe.engine.dtype,
        layers=sizes.layers,
    )
