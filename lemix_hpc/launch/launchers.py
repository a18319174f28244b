"""Which launcher a run has, by where it goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.launch import allocation, local
from lemix_hpc.launch.launcher import Launcher
from lemix_hpc.runtime.transport.rank_layout import Layout


def world_size(recipe: Recipe) -> int:
    """MPI ranks of a run: a leader and the stages of every node."""
    return Layout(recipe.nodes.count, recipe.nodes.stages).size


def make_launcher(recipe: Recipe, cluster: Literal["local", "allocation"], rank: Sequence[str]) -> Launcher:
    """What starts all ranks from here, each with the command `rank`. Raises UserError where that is not possible."""
    if cluster == "allocation":
        return allocation.launcher(recipe, rank)
    return local.launcher(world_size(recipe), rank)
