"""Recipes in simulated time: one run, or a grid of them."""

from __future__ import annotations

from collections.abc import Sequence

from lemix_hpc.api.recipes import Changes, Given, loaded
from lemix_hpc.config.errors import UserError
from lemix_hpc.launch.preflight import preflight_simulation
from lemix_hpc.policy.placements import PLACEMENTS
from lemix_hpc.studies.compare import Row, summed_up
from lemix_hpc.studies.recipe_variants import Split
from lemix_hpc.studies.simulated_run import Simulated
from lemix_hpc.studies.simulated_run import simulate as simulate_recipe
from lemix_hpc.studies.sweep import Grid, run_grid


def simulate(recipe: Given, changes: Changes | None = None) -> Simulated:
    """Run a recipe in simulated time: the same one gives the same result. Its `summary` is the report, `records` have all
    requests, micro-batches and spans. Raises UserError with every mistake found."""
    ready = loaded(recipe, changes)
    preflight_simulation(ready)
    return simulate_recipe(ready.recipe)


def compare(
    recipe: Given,
    changes: Changes | None = None,
    *,
    policies: Sequence[str],
    rates: Sequence[float] = (),
    training_shares: Sequence[float] = (),
    seeds: Sequence[int] = (),
    split: Split = None,
    baseline: str | None = None,
    jobs: int = 1,
) -> list[Row]:
    """Simulate placements under many loads, as `lemix compare` does: a row for each placement and load, with means over the
    seeds and ratios to the baseline, by default the first placement.

    Without rates, shares or seeds the recipe's own. With more than one of `jobs`, processes are spawned: guard the program's
    own start by `if __name__ == "__main__"`. Raises UserError for what does not fit the recipe.
    """
    ready = loaded(recipe, changes)
    preflight_simulation(ready)
    base = baseline or next(iter(policies), "")
    for name in (*policies, base):
        if name not in PLACEMENTS:
            raise UserError(f"policies: there is no policy {name!r}; give some of {', '.join(PLACEMENTS)}")
    if base not in policies:
        raise UserError(f"baseline: {base} is not among the policies of this comparison: {', '.join(policies)}")
    grid = Grid(ready.recipe, policies, rates, training_shares, seeds, split)
    return summed_up(list(run_grid(grid, jobs=jobs)), base)
