"""What a run saves of its training, and when, from its recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lemix_hpc.checkpoints.manifest import Manifest
from lemix_hpc.checkpoints.store import CHECKPOINTS
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.model_sizes import model_config
from lemix_hpc.run_setup.scheduler_setup import partners, split


@dataclass(frozen=True, slots=True)
class SavePlan:
    """`directory`: of the run's checkpoints. `template`: a manifest that lacks what each save brings; its `step` is where the
    run begins to count.

    `nodes` are saved: all that train, or one of those that take each step together. `every_steps` (of all nodes) or `every_s`
    after the last save began the next one is due, whichever comes first; `at_end`: also when the run ends. The newest `keep`
    stay.
    """

    directory: Path
    template: Manifest
    nodes: tuple[int, ...]
    every_steps: int | None
    every_s: float | None
    at_end: bool
    keep: int


def save_plan(recipe: Recipe, run_dir: Path, step: int) -> SavePlan | None:
    """`step`: steps of all nodes that the run starts from.

    None if nothing is saved: nothing is trained, or there are no weights and the recipe asks for no checkpoints."""
    training = recipe.training
    computes = recipe.engine.computes
    if training is None:
        return None
    wanted = training.checkpoint
    if not computes and wanted.every_steps is None and wanted.every_s is None:
        return None
    together, apart = partners(recipe), split(recipe)
    nodes = tuple(apart.training if apart is not None else range(recipe.nodes.count))
    across_nodes = together.mode if together is not None else "local"
    if across_nodes == "sync":
        nodes = nodes[:1]  # all are alike, to the last bit
    template = Manifest(
        run=run_dir.name,
        step=step,
        created=0.0,
        model_path=str(recipe.model.path) if computes and recipe.model.path is not None else None,
        model=dict(model_config(recipe.model)) if computes else {},
        engine=recipe.engine.kind,
        dtype="",
        across_nodes=across_nodes,
        nodes=recipe.nodes.count,
        stages=recipe.nodes.stages,
        saved=[],
    )
    return SavePlan(
        run_dir / CHECKPOINTS,
        template,
        nodes,
        wanted.every_steps,
        wanted.every_s,
        at_end=computes,
        keep=wanted.keep,
    )
