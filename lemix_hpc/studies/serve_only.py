"""The load of a recorded run with its training taken out."""

from __future__ import annotations

from pathlib import Path

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.report.build import summarise
from lemix_hpc.report.training_cost import TrainingCost, training_cost
from lemix_hpc.studies.recorded_run import recorded_recipe
from lemix_hpc.studies.replay import replay


def cost_of_training(run_dir: Path, recipe_path: Path) -> TrainingCost:
    """By two simulations with the arrivals, lengths and learned stage times of the run, with its training and without.

    Raises UserError for a run that has not trained or served, or whose records are missing or broken.
    """
    recipe = recorded_recipe(recipe_path)
    if recipe.training is None or recipe.serving is None:
        raise UserError("--serve-only: the run does not serve and train, so training cost its requests nothing")
    records, simulated = replay(run_dir, recipe)
    run = summarise(records)
    if not run["serving"]["received"]:
        raise UserError("--serve-only: the run has served no requests, so training cost them nothing")
    _, alone = replay(run_dir, serve_only(recipe))
    return training_cost(run, simulated.summary, alone.summary)


def serve_only(recipe: Recipe) -> Recipe:
    """Without training. Where some nodes would only train, all of them serve, as if by default."""
    policy = recipe.policy
    if policy.splits:
        policy = policy.model_copy(update={"placement": None, "training_nodes": None})
    return recipe.model_copy(update={"training": None, "policy": policy})
