"""The runs of a study, as a grid."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import read_recipe
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.config.study import Study
from lemix_hpc.launch.preflight import preflight_simulation
from lemix_hpc.studies.recipe_variants import with_rate, with_seed, with_share
from lemix_hpc.studies.sweep import Cell, cells_of


@dataclass(frozen=True)
class StudyGrid:
    """Every variant, by its name in the place of a policy's, with every rate, share of training and seed."""

    variants: Mapping[str, Recipe]
    rates: Sequence[float]
    shares: Sequence[float]
    seeds: Sequence[int]

    def cells(self) -> list[Cell]:
        seeds = self.seeds or (next(iter(self.variants.values())).seed,)
        return cells_of(list(self.variants), self.rates, self.shares, seeds)

    def recipe_of(self, cell: Cell) -> Recipe:
        """Raises UserError where something does not fit the recipe."""
        recipe = with_seed(self.variants[cell.policy], cell.seed)
        if cell.training_share is not None:
            recipe = with_share(recipe, cell.training_share)
        return recipe if cell.rate is None else with_rate(recipe, cell.rate)


def grid_of(study: Study, path: Path, overrides: Sequence[str] = ()) -> StudyGrid:
    """`overrides` come behind the study's own settings, and before what makes a variant. Raises UserError with every mistake in
    the recipe of a variant, which it names. `path`: of the study."""
    variants = {}
    for name, keys in study.variants.items():
        try:
            loaded = read_recipe(study.recipe, [*_as_overrides(study.settings), *overrides, *_as_overrides(keys)])
            preflight_simulation(loaded)
        except UserError as error:
            raise UserError(f"{path}: variant {name}: {error}") from error
        variants[name] = loaded.recipe
    return StudyGrid(variants, study.rates, study.training_shares, study.seeds)


def _as_overrides(keys: Mapping[str, Any]) -> list[str]:
    """JSON is YAML."""
    return [f"{key}={json.dumps(value)}" for key, value in keys.items()]
