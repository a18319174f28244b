"""The runs of a study, as a grid."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import LoadedRecipe, Override, read_recipe
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.config.study import Study
from lemix_hpc.launch.preflight import preflight, preflight_simulation
from lemix_hpc.launch.start import choose_cluster
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


def grid_of(study: Study, path: Path, overrides: Sequence[str] = (), cluster: str | None = None) -> StudyGrid:
    """`overrides` come behind the study's own settings, and before what makes a variant. Raises UserError with every mistake in
    the recipe of a variant, which it names. `path`: of the study; `cluster`: where real runs go, if it is not where the recipe
    says."""
    variants = {}
    for name, keys in study.variants.items():
        engine = ["engine.kind=emulated"] if study.on == "emulated" else []
        try:
            own, variant = (_as_overrides(each, path.parent) for each in (study.settings, keys))
            changes: list[str | Override] = [*own, *overrides, *engine, *variant]
            loaded = read_recipe(study.recipe, changes)
            _check(loaded, study, cluster)
        except UserError as error:
            raise UserError(f"{path}: variant {name}: {error}") from error
        variants[name] = loaded.recipe
    return StudyGrid(variants, study.rates, study.training_shares, study.seeds)


def _check(loaded: LoadedRecipe, study: Study, cluster: str | None) -> None:
    if study.on == "simulator":
        preflight_simulation(loaded)
        return
    if study.on == "devices" and not loaded.recipe.engine.computes:
        raise UserError(
            f"on: devices: its engine is {loaded.recipe.engine.kind}, which uses none; give a model and another engine, such "
            "as --set engine.kind=torch --set model.path=/models/NAME"
        )
    preflight(loaded, choose_cluster(cluster or loaded.recipe.cluster.kind))


def _as_overrides(keys: Mapping[str, Any], base: Path) -> list[Override]:
    """JSON is YAML. `base`: what paths are relative to."""
    return [Override(f"{key}={json.dumps(value)}", base) for key, value in keys.items()]
