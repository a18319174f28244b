"""What is checked before anything starts: the recipe by itself, then against its coefficients, model and machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lemix_hpc.config.api_keys import read_keys
from lemix_hpc.config.check import check_profile, check_recipe
from lemix_hpc.config.document import KeyPath
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import LoadedRecipe
from lemix_hpc.config.problem import Problem


def preflight(loaded: LoadedRecipe, cluster: str) -> tuple[str, ...]:
    """Raises UserError with every mistake found, each with its place in the recipe or data file. Loads no engine.

    Reads the workload as the run will, so that a broken file costs no allocation; returns a message for each line of it
    that will be left out.
    """
    problems = [*check_recipe(loaded.recipe), *_split(loaded), *_keys(loaded)]
    loaded.reject(problems or [*_coefficients(loaded), *_model(loaded), *_resume(loaded), *_device(loaded, cluster)])
    from lemix_hpc.workload.load import load_workload

    work = load_workload(loaded.recipe)
    if work.batches is not None:
        next(work.batches)
    return work.left_out


def preflight_simulation(loaded: LoadedRecipe) -> None:
    """As `preflight`, for simulated runs: they need no devices, and find the best split of the nodes themselves."""
    problems = check_recipe(loaded.recipe)
    loaded.reject(problems or [*_coefficients(loaded), *_model(loaded)])


def preflight_profile(loaded: LoadedRecipe, cluster: str) -> None:
    """As `preflight`, for profiling, which has no workload."""
    problems = check_profile(loaded.recipe)
    loaded.reject(problems or [*_coefficients(loaded), *_model(loaded), *_device(loaded, cluster)])


def _split(loaded: LoadedRecipe) -> Iterator[Problem]:
    if loaded.recipe.policy.training_nodes == "auto":
        yield Problem(
            ("policy", "training_nodes"),
            "auto works in simulation only; run `lemix compare RECIPE --split auto`, and give here the number it finds",
        )


def _keys(loaded: LoadedRecipe) -> Iterator[Problem]:
    serving = loaded.recipe.serving
    if serving is None or serving.http is None or serving.http.api_key_file is None:
        return
    try:
        read_keys(serving.http.api_key_file)
    except UserError as error:
        yield Problem(("serving", "http", "api_key_file"), str(error))


def _coefficients(loaded: LoadedRecipe) -> Iterator[Problem]:
    from lemix_hpc.profiling.coefficients import load_coefficients

    recipe = loaded.recipe
    files: list[tuple[KeyPath, Path | None]] = [
        (("engine", "coefficients"), recipe.engine.coefficients),
        (("policy", "coefficients"), recipe.policy.coefficients),
    ]
    for index, kind in enumerate(recipe.nodes.kinds or ()):
        files.append((("nodes", "kinds", index, "coefficients"), kind.coefficients))
    for key, path in files:
        if path is None:
            continue
        try:
            load_coefficients(path).latency(recipe.nodes.stages)
        except UserError as error:
            yield Problem(key, str(error))


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


def _resume(loaded: LoadedRecipe) -> Iterator[Problem]:
    """Whether the checkpoint is of this model, as far as its manifest tells."""
    training = loaded.recipe.training
    if training is None or training.resume is None:
        return
    from lemix_hpc.checkpoints.resumption import KEY, check_model
    from lemix_hpc.checkpoints.store import CHECKPOINTS, Checkpoint, complete_paths
    from lemix_hpc.engines.model_sizes import model_config

    path = training.resume
    inside = complete_paths(path / CHECKPOINTS)
    try:
        check_model(Checkpoint.read(inside[-1] if inside else path), model_config(loaded.recipe.model))
    except UserError as error:
        yield Problem(tuple(KEY.split(".")), str(error).removeprefix(f"{KEY}: "))


def _device(loaded: LoadedRecipe, cluster: str) -> Iterator[Problem]:
    engine = loaded.recipe.engine
    if cluster == "local" and engine.computes and engine.device == "cuda" and not Path("/dev/nvidiactl").exists():
        yield Problem(
            ("engine", "device"), "this machine has no NVIDIA GPU; set engine.device: cpu, or run under Slurm"
        )
