"""Build the engine that a recipe asks for."""

from __future__ import annotations

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.protocol import StageEngine
from lemix_hpc.profiling.coefficients import load_coefficients


def build_engine(recipe: Recipe, *, stage: int, local_stage: int, stages_here: int) -> StageEngine:
    """The engine of one stage rank.

    `local_stage` counts the stage ranks of this host (`stages_here` of them) and picks the device. Imports only what the
    chosen engine needs.
    """
    if recipe.engine.kind == "emulated":
        from lemix_hpc.engines.emulated import EmulatedStage

        if recipe.engine.coefficients is None:
            raise UserError("engine.coefficients: the emulated engine needs a coefficient file")
        file = load_coefficients(recipe.engine.coefficients)
        return EmulatedStage(file.latency(recipe.nodes.stages), stage, max(1, file.layers // recipe.nodes.stages))
    from lemix_hpc.engines.torch.build import build_stage
    from lemix_hpc.engines.torch.devices import choose_device

    device = choose_device(recipe.engine, local_stage=local_stage, stages_here=stages_here)
    return build_stage(recipe, stage=stage, device=device)
