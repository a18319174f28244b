"""Mistakes that no single key shows: sections that need each other, numbers that do not fit, files that are not there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lemix_hpc.config.check_amounts import check_amounts
from lemix_hpc.config.data_paths import as_list, is_pattern, matched
from lemix_hpc.config.document import KeyPath
from lemix_hpc.config.engine_kinds import ENGINE_KINDS
from lemix_hpc.config.problem import Problem
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.config.serving_section import TraceSource
from lemix_hpc.config.text_file import why_out_of_reach, why_unreadable
from lemix_hpc.config.training_section import Training
from lemix_hpc.config.workload_section import TextData
from lemix_hpc.policy.placements import users_of


def check_recipe(recipe: Recipe) -> list[Problem]:
    """Everything wrong with a recipe that can be told without loading an engine. Looks at the file system."""
    checks: Sequence[Callable[[Recipe], Iterator[Problem]]] = (
        _check_work,
        _check_engine,
        _check_shape,
        _check_emulated,
        _check_devices,
        check_placement,
        _check_training,
        _check_graphs,
        _check_in_flight,
        _check_across_nodes,
        check_amounts,
        check_paths,
    )
    return [problem for check in checks for problem in check(recipe)]


def check_paths(recipe: Recipe) -> Iterator[Problem]:
    """Files and directories that are not there, or are no such thing."""
    yield from _check_files(recipe)
    yield from _check_model_files(recipe)
    yield from _check_resume(recipe)


def check_profile(recipe: Recipe) -> list[Problem]:
    """What profiling needs of a recipe: a model and devices, but no work to do. Looks at the file system."""
    checks: Sequence[Callable[[Recipe], Iterator[Problem]]] = (
        _check_engine,
        _check_devices,
        _check_model_files,
    )
    return [problem for check in checks for problem in check(recipe)]


def gpus_per_host(recipe: Recipe) -> int | None:
    """The GPUs that the recipe asks Slurm for on each host, None where it does not say."""
    cluster = recipe.cluster
    if cluster.gpus_per_node is not None:
        return cluster.gpus_per_node
    counts = re.findall(r"(?:^|,)(?:gres[:/])?gpu(?:[:/][A-Za-z][^:,]*)?(?:[:=](\d+))?(?=,|$|\()", cluster.gres or "")
    return sum(int(count or 1) for count in counts) if counts else None


def _check_work(recipe: Recipe) -> Iterator[Problem]:
    serving, training = recipe.serving, recipe.training
    if serving is None and training is None:
        yield Problem((), "there is nothing to do; give a `serving` section, a `training` section, or both")
    if serving is not None and serving.source is None and serving.http is None:
        yield Problem(("serving",), "it has no requests; give `source`, `http` (the OpenAI API), or both")
    if serving is not None and serving.http is not None and not recipe.engine.serves_http:
        serving_http = " or ".join(name for name, kind in ENGINE_KINDS.items() if kind.serves_http)
        yield Problem(
            ("serving", "http"), f"needs engine.kind: {serving_http}, and engine.kind is {recipe.engine.kind}"
        )
    yield from _check_batch(recipe)
    if training is not None and training.offload_optimizer and training.zero_stage == 0:
        yield Problem(("training", "offload_optimizer"), "needs ZeRO; set training.zero_stage: 1")


def _check_batch(recipe: Recipe) -> Iterator[Problem]:
    """To an engine that answers API calls the lines of a batch file go as they are, and say themselves what they want."""
    serving = recipe.serving
    if not recipe.engine.serves_http or serving is None or serving.source is None:
        return
    if serving.source.kind == "openai-batch":
        for key in ("max_prompt_tokens", "max_new_tokens", "temperature", "conversations"):
            if getattr(serving, key):
                yield Problem(
                    ("serving", key),
                    f"{recipe.engine.kind} answers each line of a batch file as it is; leave this key out",
                )


def _check_engine(recipe: Recipe) -> Iterator[Problem]:
    engine, model = recipe.engine, recipe.model
    if not engine.computes and engine.coefficients is None:
        yield Problem(
            ("engine", "coefficients"),
            f"missing; the {engine.kind} engine takes its times from a coefficient file (`profiling/`)",
        )
    if engine.computes and model.path is None and model.config is None:
        yield Problem(
            ("model",),
            f"the {engine.kind} engine needs a model; give `path` (a checkpoint directory) or `config` (initialised at random)",
        )


def _check_shape(recipe: Recipe) -> Iterator[Problem]:
    nodes, per_host = recipe.nodes.count, recipe.cluster.nodes_per_host
    if nodes % per_host:
        yield Problem(
            ("nodes", "count"),
            f"{nodes} nodes do not fill whole hosts of cluster.nodes_per_host = {per_host}; "
            f"take {f'{nodes // per_host * per_host} or ' * (nodes > per_host)}{(nodes // per_host + 1) * per_host}",
        )


def _check_emulated(recipe: Recipe) -> Iterator[Problem]:
    if not recipe.engine.computes:
        return
    way_out = f"and engine.kind is {recipe.engine.kind}; leave it out, or set engine.kind: emulated"
    if recipe.nodes.kinds is not None:
        yield Problem(
            ("nodes", "kinds"), f"only `lemix simulate` and the emulated engine have nodes of several kinds, {way_out}"
        )
    if recipe.training is not None and recipe.training.lengths is not None:
        yield Problem(("training", "lengths"), f"only the emulated engine draws lengths from a table, {way_out}")


def _check_devices(recipe: Recipe) -> Iterator[Problem]:
    gpus, engine = gpus_per_host(recipe), recipe.engine
    if gpus is None or engine.share_devices or not engine.computes or engine.device == "cpu":
        return
    needed = recipe.nodes.stages * recipe.cluster.nodes_per_host
    if gpus != needed:
        key = "gpus_per_node" if recipe.cluster.gpus_per_node is not None else "gres"
        yield Problem(
            ("cluster", key),
            f"asks for {gpus} GPUs on a host, but its stages use {needed} (nodes.stages {recipe.nodes.stages} x "
            f"cluster.nodes_per_host {recipe.cluster.nodes_per_host}); ask for {needed}, or set engine.share_devices: true",
        )


def check_placement(recipe: Recipe) -> Iterator[Problem]:
    """Whether the nodes can be split as the policy wants."""
    policy, nodes = recipe.policy, recipe.nodes.count
    training_nodes = policy.training_nodes
    if policy.splits:
        if nodes < 2:
            yield Problem(
                ("policy", "placement"),
                f"{policy.placement} needs at least 2 nodes, one to serve and one to train, and nodes.count is {nodes}",
            )
        elif isinstance(training_nodes, int) and training_nodes >= nodes:
            yield Problem(
                ("policy", "training_nodes"),
                f"{training_nodes} of {nodes} nodes leave none to serve; give at most {nodes - 1}",
            )
    elif training_nodes is not None:
        placement = "not given" if policy.placement is None else policy.placement
        yield Problem(
            ("policy", "training_nodes"),
            f"only placement {' and '.join(users_of('training_nodes'))} uses it, and policy.placement is {placement}; "
            "leave it out",
        )


def _check_training(recipe: Recipe) -> Iterator[Problem]:
    training = recipe.training
    if training is None:
        return
    if recipe.serving is None and training.share is not None:
        yield Problem(
            ("training", "share"),
            "a share of all tasks needs a `serving` section; without one give `micro_batches`",
        )
    elif recipe.serving is None and training.micro_batches is None:
        yield Problem(
            ("training",),
            "without a `serving` section training has no end; give `micro_batches`, how many to train on in all",
        )
    if training.release == "async" and training.recompute != "none":
        yield Problem(
            ("training", "recompute"),
            f"{training.recompute} needs release: sync; with async all stages but the last keep their input alone anyway, and "
            "run the forward again. Set training.release: sync, or leave this out",
        )
    http = recipe.serving.http if recipe.serving is not None else None
    if recipe.engine.computes and training.data is None and http is None:
        yield Problem(("training", "data"), f"missing; the {recipe.engine.kind} engine needs text to train on")
    if training.data is None and training.held_out is not None and training.held_out.share is not None:
        way_out = "there is no training.data to hold it out of; name a file by training.held_out.path"
        yield Problem(("training", "held_out", "share"), way_out)
    if http is not None and training.share is not None:
        yield Problem(
            ("training", "share"),
            "clients may send any number of requests, so a share has no meaning; give `micro_batches`, or neither to train "
            "until the endpoint closes",
        )


def _check_graphs(recipe: Recipe) -> Iterator[Problem]:
    engine, training = recipe.engine, recipe.training
    if training is None or not training.cuda_graphs:
        return
    if not engine.computes:
        yield Problem(("training", "cuda_graphs"), f"engine.kind {engine.kind} has no graphs; leave it out")
    elif engine.device == "cpu":
        yield Problem(("training", "cuda_graphs"), "needs a GPU, and engine.device is cpu; leave it out")


def _check_in_flight(recipe: Recipe) -> Iterator[Problem]:
    training, stages = recipe.training, recipe.nodes.stages
    if training is None or training.in_flight is None:
        return
    if training.in_flight < stages:
        yield Problem(
            ("training", "in_flight"),
            f"{training.in_flight} micro-batches do not reach the last of {stages} stages: the first one would wait for their "
            f"backwards; give at least {stages} (nodes.stages), or leave it out",
        )
    if training.release == "sync" and training.schedule == "gpipe":
        yield Problem(
            ("training", "in_flight"), "schedule gpipe has a whole group in flight; use 1f1b, or leave this out"
        )


def _check_across_nodes(recipe: Recipe) -> Iterator[Problem]:
    training = recipe.training
    if training is None:
        return
    # Not whether it is given: a resolved recipe, which can be run again, gives everything.
    given = training.average_every != Training.model_fields["average_every"].default
    if given and training.across_nodes != "average":
        yield Problem(
            ("training", "average_every"),
            f"only training.across_nodes: average uses it, and that is {training.across_nodes}; leave it out, or set average",
        )
    if training.sums == "collective" and training.across_nodes != "sync":
        yield Problem(
            ("training", "sums"),
            f"only training.across_nodes: sync sums gradients, and that is {training.across_nodes}; leave it out, or set sync",
        )
    if training.sums == "collective" and not recipe.engine.computes:
        yield Problem(("training", "sums"), f"engine.kind {recipe.engine.kind} has no gradients to sum; leave it out")


def _check_files(recipe: Recipe) -> Iterator[Problem]:
    for key, path in files_of(recipe):
        if why := why_unreadable(path):
            yield Problem(key, why)
        elif not path.exists():
            yield Problem(key, f"no file matches {path}" if is_pattern(path) else f"there is no file {path}")


def _check_model_files(recipe: Recipe) -> Iterator[Problem]:
    model = recipe.model.path
    if model is None:
        return
    if why := why_out_of_reach(model, model / "config.json"):
        yield Problem(("model", "path"), why)
    elif not _is_directory(model):
        yield Problem(("model", "path"), f"there is no directory {model}; give a Hugging Face checkpoint directory")
    elif not (model / "config.json").is_file():
        yield Problem(("model", "path"), f"{model} has no config.json; give a Hugging Face checkpoint directory")


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _check_resume(recipe: Recipe) -> Iterator[Problem]:
    resume = recipe.training.resume if recipe.training is not None else None
    if resume is None:
        return
    way_out = (
        "give a directory such as RUN/checkpoints/step-00000100, or that of a run, whose newest checkpoint is taken"
    )
    if why := why_out_of_reach(resume, resume / "manifest.json", resume / "checkpoints"):
        yield Problem(("training", "resume"), why)
    elif not _is_directory(resume):
        yield Problem(("training", "resume"), f"there is no directory {resume}; {way_out}")
    elif not (resume / "manifest.json").is_file() and not (resume / "checkpoints").is_dir():
        yield Problem(("training", "resume"), f"{resume} has no checkpoint; {way_out}")
    elif not recipe.engine.computes:
        yield Problem(
            ("training", "resume"), f"the {recipe.engine.kind} engine has no weights to restore; leave it out"
        )


def files_of(recipe: Recipe) -> Iterator[tuple[KeyPath, Path]]:
    """All files that a recipe names, each with its key, apart from those of the model."""
    if recipe.engine.coefficients is not None:
        yield ("engine", "coefficients"), recipe.engine.coefficients
    if recipe.policy.coefficients is not None:
        yield ("policy", "coefficients"), recipe.policy.coefficients
    for index, kind in enumerate(recipe.nodes.kinds or ()):
        if kind.coefficients is not None:
            yield ("nodes", "kinds", index, "coefficients"), kind.coefficients
    if recipe.serving is not None:
        if isinstance(recipe.serving.source, TraceSource):
            yield ("serving", "source", "path"), recipe.serving.source.path
        if recipe.serving.prompts is not None:
            yield from _data_files(("serving", "prompts", "path"), recipe.serving.prompts)
    if recipe.training is not None and recipe.training.data is not None:
        yield from _data_files(("training", "data", "path"), recipe.training.data)
    held_out = recipe.training.held_out if recipe.training is not None else None
    if held_out is not None and held_out.path is not None:
        yield ("training", "held_out", "path"), held_out.path


def _data_files(key: KeyPath, data: TextData) -> Iterator[tuple[KeyPath, Path]]:
    """What is there of the patterns, or a pattern itself if it matches nothing."""
    for path in as_list(data.path):
        for found in matched(path) or [path]:
            yield key, found
