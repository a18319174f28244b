"""Which launcher a run has, by where it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.launch import allocation, local
from lemix_hpc.launch.launcher import Launcher
from lemix_hpc.runtime.transport.rank_layout import Layout


def world_size(recipe: Recipe) -> int:
    """MPI ranks of a run: a leader and the stages of every node."""
    return Layout(recipe.nodes.count, recipe.nodes.stages).size


def make_launcher(recipe: Recipe, cluster: Literal["local", "allocation"], run_dir: Path) -> Launcher:
    """What starts all ranks from here. Raises UserError where that is not possible."""
    if cluster == "allocation":
        return allocation.launcher(recipe, run_dir)
    return local.launcher(world_size(recipe), run_dir)
