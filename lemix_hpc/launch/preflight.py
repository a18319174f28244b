"""What is checked before anything starts: the recipe by itself, then against its coefficients, model and machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lemix_hpc.config.api_keys import read_keys
from lemix_hpc.config.check import check_profile, check_recipe
from lemix_hpc.config.check_amounts import check_ranks_here
from lemix_hpc.config.document import KeyPath
from lemix_hpc.config.engine_kinds import ENGINE_KINDS
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import LoadedRecipe
from lemix_hpc.config.problem import Problem
from lemix_hpc.config.text_file import why_no_file
from lemix_hpc.engines.host_files import place_for_sockets
from lemix_hpc.records.key_file import key_of_environment

if TYPE_CHECKING:
    from lemix_hpc.config.recipe import Recipe
    from lemix_hpc.workload.load import Workload
    from lemix_hpc.workload.training import MicroBatchStream


def preflight(loaded: LoadedRecipe, cluster: str, run_dir: Path | None = None) -> tuple[str, ...]:
    """Raises UserError with every mistake found, each with its place in the recipe or data file. Loads no engine.

    Reads the workload as the run will, so that a broken file costs no allocation; returns a notice for each line of it that
    will be left out, and warnings of what is most likely not meant. `run_dir`: of a run that is to go on.
    """
    problems = [*check_recipe(loaded.recipe), *_split(loaded), *_keys(loaded), *_ranks(loaded, cluster)]
    if run_dir is None and _has_one_key(loaded):
        key_of_environment()
    loaded.reject([*problems, *_files(loaded, problems), *_device(loaded, cluster)])
    _check_model_files(loaded.recipe)
    from lemix_hpc.workload.load import load_workload

    work = load_workload(loaded.recipe)
    _check_memory(loaded.recipe, work)
    if work.batches is None:
        return work.notices
    next(work.batches)
    return (*work.notices, *_changed_data(work.batches, run_dir))


def _check_model_files(recipe: Recipe) -> None:
    """Before the workload goes through them."""
    from lemix_hpc.workload.model_trial import check_generation, check_template

    if recipe.engine.computes:
        check_template(recipe.model)
    if recipe.engine.kind == "vllm":
        check_generation(recipe.model)


def _check_memory(recipe: Recipe, work: Workload) -> None:
    from lemix_hpc.run_setup.memory_check import check_memory

    check_memory(recipe, work.requests.lengths())


def _changed_data(batches: MicroBatchStream, run_dir: Path | None) -> Sequence[str]:
    from lemix_hpc.run_setup.data_memory import changed

    identity = batches.identity() if run_dir is not None else None
    return () if identity is None or run_dir is None else changed(run_dir, identity)


def preflight_simulation(loaded: LoadedRecipe) -> None:
    """As `preflight`, for simulated runs: they need no devices, and find the best split of the nodes themselves."""
    problems = check_recipe(loaded.recipe)
    loaded.reject([*problems, *_files(loaded, problems)])


def preflight_profile(loaded: LoadedRecipe, cluster: str) -> None:
    """As `preflight`, for profiling, which has no workload."""
    problems = [*check_profile(loaded.recipe), *_ranks(loaded, cluster)]
    loaded.reject([*problems, *_files(loaded, problems, trains=False), *_device(loaded, cluster)])


def _files(loaded: LoadedRecipe, problems: Sequence[Problem], *, trains: bool = True) -> Iterator[Problem]:
    """What is wrong in the files of a recipe, apart from those that are not there."""
    known = {problem.path for problem in problems}
    for problem in (*_coefficients(loaded), *_model(loaded, trains=trains), *_resume(loaded), *_engine_args(loaded)):
        if problem.path not in known and not (problem.path == ("model",) and ("model", "path") in known):
            yield problem


def _ranks(loaded: LoadedRecipe, cluster: str) -> Iterator[Problem]:
    if cluster == "local":
        place_for_sockets()
        yield from check_ranks_here(loaded.recipe)


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


def _has_one_key(loaded: LoadedRecipe) -> bool:
    """Whether the run's only key is from the environment, or made, when it begins."""
    http = None if loaded.recipe.serving is None else loaded.recipe.serving.http
    return http is not None and http.api_key_file is None and http.api_key is None


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
        if why_no_file(path) or not path.exists():
            continue
        try:
            latency = load_coefficients(path).latency(recipe.nodes.stages)
        except (UserError, OSError) as error:
            yield Problem(key, str(error))
            continue
        if not sum(latency.request_times(2, 0)) > 0:
            yield Problem(key, f"{path} says that a request takes no time at all; give the times of a real model")


def _model(loaded: LoadedRecipe, *, trains: bool) -> Iterator[Problem]:
    from lemix_hpc.engines.model_sizes import describe, stored_config
    from lemix_hpc.engines.weight_files import check_weights

    recipe = loaded.recipe
    model, stages = recipe.model, recipe.nodes.stages
    if model.path is None and model.config is None:
        return
    try:
        sizes = describe(model)
        if recipe.engine.computes and model.path is not None:
            check_weights(model.path, stored_config(model))
    except UserError as error:
        yield Problem(("model",), str(error).removeprefix("model: "))
        return
    if stages > sizes.layers:
        yield Problem(
            ("nodes", "stages"), f"{stages} stages need as many decoder layers, and the model has {sizes.layers}"
        )
    if not recipe.engine.computes:
        return
    # A profiling job measures the lengths of its own section.
    training = recipe.training if trains else None
    if training is not None and sizes.context is not None and training.sequence_length > sizes.context:
        yield Problem(
            ("training", "sequence_length"),
            f"{training.sequence_length} tokens are more than the model's {sizes.context} positions; lower it",
        )
    families = ENGINE_KINDS[recipe.engine.kind].families
    if families is not None and sizes.family not in families:
        yield Problem(
            ("engine", "kind"),
            f"{recipe.engine.kind} serves and trains {', '.join(families)}, and the model is {sizes.family}; set torch",
        )


def _engine_args(loaded: LoadedRecipe) -> Iterator[Problem]:
    if loaded.recipe.engine.kind != "vllm":
        return
    from lemix_hpc.engines.vllm.check import refusal

    if refused := refusal(loaded.recipe):
        key, _, text = refused.partition(": ")
        yield Problem(tuple(key.split(".")), text)


def _resume(loaded: LoadedRecipe) -> Iterator[Problem]:
    """Whether the checkpoint is of this model, as far as its manifest tells."""
    training = loaded.recipe.training
    if training is None or training.resume is None:
        return
    from lemix_hpc.checkpoints.resumption import KEY, check_model
    from lemix_hpc.checkpoints.store import CHECKPOINTS, Checkpoint, complete_paths
    from lemix_hpc.engines.model_sizes import model_config

    path = training.resume
    try:
        inside = complete_paths(path / CHECKPOINTS)
        check_model(Checkpoint.read(inside[-1] if inside else path), model_config(loaded.recipe.model))
    except UserError as error:
        yield Problem(tuple(KEY.split(".")), str(error).removeprefix(f"{KEY}: "))
    except OSError as error:
        yield Problem(tuple(KEY.split(".")), f"{error.filename} cannot be read: {error.strerror}")


def _device(loaded: LoadedRecipe, cluster: str) -> Iterator[Problem]:
    engine = loaded.recipe.engine
    if cluster == "local" and engine.computes and engine.device == "cuda" and not Path("/dev/nvidiactl").exists():
        yield Problem(
            ("engine", "device"), "this machine has no NVIDIA GPU; set engine.device: cpu, or run under Slurm"
        )
