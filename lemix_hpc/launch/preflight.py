"""What is checked before anything starts: the recipe by itself, then against its coefficients, model and machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lemix_hpc.config.check import check_recipe
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import LoadedRecipe
from lemix_hpc.config.problem import Problem


def preflight(loaded: LoadedRecipe, cluster: Literal["local", "slurm"]) -> None:
    """Raises UserError with every mistake found, each with its place in the recipe. Loads no engine."""
    problems = check_recipe(loaded.recipe)
    loaded.reject(problems or [*_coefficients(loaded), *_model(loaded), *_device(loaded, cluster)])


def _coefficients(loaded: LoadedRecipe) -> Iterator[Problem]:
    from lemix_hpc.profiling.coefficients import load_coefficients

    path = loaded.recipe.engine.coefficients
    if path is not None:
        try:
            load_coefficients(path).latency(loaded.recipe.nodes.stages)
        except UserError as error:
            yield Problem(("engine", "coefficients"), str(error))


def _model(loaded: LoadedRecipe) -> Iterator[Problem]:
    from lemix_hpc.engines.model_sizes import describe

    model, stages = loaded.recipe.model, loaded.recipe.nodes.stages
    if model.path is None and model.config is None:
        return
    try:
        layers = describe(model).layers
    except UserError as error:
        yield Problem(("model",), str(error).removeprefix("model: "))
        return
    if stages > layers:
        yield Problem(("nodes", "stages"), f"{stages} stages need as many decoder layers, and the model has {layers}")


def _device(loaded: LoadedRecipe, cluster: str) -> Iterator[Problem]:
    engine = loaded.recipe.engine
    if (
        cluster == "local"
        and engine.kind != "emulated"
        and engine.device == "cuda"
        and not Path("/dev/nvidiactl").exists()
    ):
        yield Problem(
            ("engine", "device"), "this machine has no NVIDIA GPU; set engine.device: cpu, or run under Slurm"
        )
