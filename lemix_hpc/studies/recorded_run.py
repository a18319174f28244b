"""What a run, real or simulated, has left for others: its recipe, its records and its stage times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import load_recipe
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.config.text_file import BROKEN_JSON
from lemix_hpc.profiling.coefficients import CoefficientFile, load_coefficients
from lemix_hpc.profiling.hardware import Hardware, load_hardware
from lemix_hpc.profiling.learned import learned_file
from lemix_hpc.records.schema import COEFFICIENTS, LEARNED, LearnedTimes


def recorded_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a run directory, its policy changed by `overrides`. Raises UserError for those of other sections."""
    for override in overrides:
        if not override.startswith("policy."):
            raise UserError(f"--set {override}: the load is the recorded one; only keys of the policy can be changed")
    return load_recipe(path, overrides)


def believed_hardware(run_dir: Path, recipe: Recipe) -> Hardware:
    """What the forecasts of a run started from."""
    return load_hardware(recipe) if recipe.nodes.kinds else _alike(_coefficients(run_dir), recipe)


def real_hardware(run_dir: Path, recipe: Recipe) -> Hardware:
    """What passes took in a run: what its forecasts started from, corrected by what it learned."""
    if recipe.nodes.kinds:
        return load_hardware(recipe)
    file, path = _coefficients(run_dir), run_dir / LEARNED
    if path.exists():
        try:
            told = msgspec.json.decode(path.read_bytes(), type=LearnedTimes)
        except BROKEN_JSON as error:
            raise UserError(f"{path}: not a file that a run wrote: {error}") from error
        if told.learned:
            file = learned_file(file, recipe.nodes.stages, told.learned, {"source": f"learned by run {run_dir.name}"})
    return _alike(file, recipe)


def _coefficients(run_dir: Path) -> CoefficientFile:
    path = run_dir / COEFFICIENTS
    if not path.exists():
        raise UserError(f"{path} is missing; a run writes its stage times there before it starts")
    return load_coefficients(path)


def _alike(file: CoefficientFile, recipe: Recipe) -> Hardware:
    return Hardware(file, (file,), (file,), (0,) * recipe.nodes.count, recipe.recomputing)
