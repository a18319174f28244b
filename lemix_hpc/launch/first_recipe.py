"""A first recipe from a few answers: sized for the hosts and the model, written with comments, and checked like any other."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from lemix_hpc.config.document import Dumper
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import read_recipe
from lemix_hpc.config.recipe import Model, Recipe
from lemix_hpc.engines.memory_advice import Gpus, best, layouts
from lemix_hpc.engines.memory_plan import plan_memory
from lemix_hpc.engines.model_sizes import ModelSizes, describe
from lemix_hpc.launch.preflight import preflight
from lemix_hpc.launch.site import Hosts

TINY = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 257,
    "max_position_embeddings": 1024,
}
"""With random weights, for those who have no model at hand."""
PROCESS, CUDA_PROCESS = 1e9, 3e9
"""Bytes of a host that a rank takes beside what the plan counts, without and with GPUs. Estimates."""
MOST_CORES, HOUR = 8, 3600
GPU_RATE, CPU_RATE = 2, 0.5
"""Requests/s that a small model keeps up with while it trains. On CPUs by a trial on two cores."""
LONGEST = 512
"""Tokens of a prompt and of a training sequence, which a first run keeps short."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What somebody wants to run, and where. `model`: a checkpoint directory; `data`: JSON lines to train on. None of either:
    a tiny model, and no training."""

    name: str
    model: Path | None
    data: Path | None
    hosts: Hosts


@dataclass(frozen=True, slots=True)
class _Shape:
    """How the GPUs of a host, or its cores, are used."""

    replicas: int
    stages: int
    offload: bool = False


def first_recipe(answers: Answers, file: Path) -> str:
    """The text of a recipe that a run can start from, in a file that is not written here.

    Raises UserError for a model or data that cannot be used, and for a model that does not fit.
    """
    model = Model(path=answers.model.absolute()) if answers.model is not None else Model(config=TINY)
    sizes = describe(model)
    sections = _sections(answers, model, sizes, _Shape(1, 1))
    shape = _shape(answers, sizes, Recipe.model_validate(sections))
    text = _text(answers, _sections(answers, model, sizes, shape))
    with tempfile.TemporaryDirectory() as directory:
        draft = Path(directory) / file.name
        draft.write_text(text, encoding="utf-8")
        try:
            preflight(read_recipe(draft), "local" if answers.hosts.partition is None else "slurm")
        except UserError as error:
            raise UserError(str(error).replace(str(draft), str(file))) from error
    return text


def _shape(answers: Answers, sizes: ModelSizes, recipe: Recipe) -> _Shape:
    hosts = answers.hosts
    if hosts.gpus == 0:
        # In a job each stage and their leader have a core of their own; here they may share.
        most = 2 if hosts.partition is None else max(1, hosts.cores - 1)
        return _Shape(1, min(2, sizes.layers, most))
    if hosts.gpu_bytes is None:
        stages = max(count for count in range(1, hosts.gpus + 1) if hosts.gpus % count == 0 and count <= sizes.layers)
        return _Shape(hosts.gpus // stages, stages)
    way = best(layouts(recipe, Gpus(hosts.gpus, hosts.gpu_bytes)))
    if way is None:
        raise UserError(
            f"--gpus: no way to cut {hosts.gpus} GPUs of {hosts.gpu_bytes / 2**30:.0f} GB holds this model"
            f"{' and its training' if answers.data else ''}; take more or larger ones, or a smaller model"
        )
    return _Shape(way.replicas, way.stages, way.offload)


def _sections(answers: Answers, model: Model, sizes: ModelSizes, shape: _Shape) -> dict[str, Any]:
    hosts = answers.hosts
    length = min(LONGEST, sizes.context or LONGEST)
    nodes = {"count": shape.replicas, "stages": shape.stages}
    rate = GPU_RATE if hosts.gpus else CPU_RATE
    serving: dict[str, Any] = {
        "mode": "generate",
        "source": {"kind": "poisson", "rate": rate, "duration_s": 60, "lengths": "lmsys-chat"},
        "max_prompt_tokens": max(1, length // 2),
        "max_new_tokens": max(1, min(32, length // 2)),
    }
    sections = {
        "name": answers.name,
        "cluster": {"kind": "local"},
        "nodes": nodes,
        "model": model.model_dump(mode="json", exclude_defaults=True),
        "engine": {"kind": "torch", "device": "cuda" if hosts.gpus else "cpu"},
        "serving": serving,
    }
    if answers.data is not None:
        path = str(answers.data.absolute())
        serving["prompts"] = {"path": path}
        sections["training"] = {
            "data": {"path": path},
            "sequence_length": length,
            "micro_batches_per_step": 8,
            "learning_rate": 1e-3 if answers.model is None else 1e-5,
        } | ({"offload_optimizer": True} if shape.offload else {})
    if hosts.partition is not None:
        sections["cluster"] = _cluster(hosts, shape, Recipe.model_validate(sections))
    return sections


def _cluster(hosts: Hosts, shape: _Shape, recipe: Recipe) -> dict[str, Any]:
    ranks = shape.replicas * (shape.stages + 1)
    asked: dict[str, Any] = {"kind": "slurm", "partition": hosts.partition}
    limit = min(HOUR, hosts.limit_s or HOUR)
    asked["time"] = f"{limit // 3600:02}:{limit // 60 % 60:02}:{limit % 60:02}"
    if shape.replicas > 1:
        asked["nodes_per_host"] = shape.replicas
    if hosts.gpus:
        asked["gpus_per_node"] = shape.replicas * shape.stages
    asked["cpus_per_task"] = max(1, min(MOST_CORES, hosts.cores // ranks))
    if hosts.memory is not None:
        asked["mem"] = f"{_host_gib(hosts, hosts.memory, shape, recipe)}G"
    return asked


def _host_gib(hosts: Hosts, there: float, shape: _Shape, recipe: Recipe) -> int:
    """GiB of a host to ask for: what the plan counts and what its ranks take beside it, or all. Raises UserError if the host
    has not even what the plan counts."""
    plans = plan_memory(recipe, cuda=hosts.gpus > 0)
    counted = shape.replicas * sum(plan.on_host + (0 if hosts.gpus else plan.on_device) for plan in plans)
    if counted > there:
        raise UserError(
            f"--model: the run would take {counted / 1e9:.0f} GB of a host's memory, and hosts of partition "
            f"{hosts.partition} have {there / 1e9:.0f}; take another partition, or a smaller model"
        )
    beside = shape.replicas * (shape.stages + 1) * (CUDA_PROCESS if hosts.gpus else PROCESS)
    return min(math.ceil((counted + beside) / 2**30), math.floor(there / 2**30))


def _text(answers: Answers, sections: dict[str, Any]) -> str:
    """YAML with a line on each section, as somebody would write it who explains it."""
    return "\n".join([*_head(answers), *_body(sections)]) + "\n"


def _head(answers: Answers) -> Iterator[str]:
    yield "# A first recipe, written by `lemix init`: requests come for a minute, and the model generates answers to them."
    if answers.data is None:
        yield "# It does not train, as no data were given: add a section `training` with `data: {path: FILE}`."
    if answers.model is None:
        yield "# The model is a tiny one with random weights; for another, put `path: DIRECTORY` in the place of `config`."
    if answers.hosts.gpus and answers.hosts.gpu_bytes is None:
        yield "# How much memory the GPUs have was not known: `lemix plan RECIPE --gpus 4x80GB` says if yours are large enough."


_COMMENTS = {
    "cluster": "where it runs",
    "nodes": "replicas of the model, and pipeline stages of each",
    "model": "what is served and trained",
    "engine": "kind: vllm serves faster on GPUs, and opens an OpenAI endpoint (docs/vllm.md)",
    "serving": "for a trace of yours: source: {kind: azure, path: FILE}",
    "training": "as long as there are requests",
}


def _body(sections: dict[str, Any]) -> Iterator[str]:
    for name, content in sections.items():
        if name in _COMMENTS:
            yield f"\n# {name}: {_COMMENTS[name]}"
        yield yaml.dump({name: content}, Dumper=Dumper, sort_keys=False, allow_unicode=True).rstrip()


def with_gpus(hosts: Hosts, asked: str) -> Hosts:
    """The hosts with so many GPUs used: `4`, or `4x80GB`, or `0` for none. Raises UserError for anything else, or more than are
    there."""
    text = asked.strip()
    if text.isascii() and text.isdigit():
        count, size = int(text), hosts.gpu_bytes
    else:
        given = Gpus.parse(text)
        count, size = given.count, given.bytes
    if count > hosts.gpus:
        where = f"hosts of partition {hosts.partition} have" if hosts.partition is not None else "this machine has"
        raise UserError(f"--gpus: {count} are asked for, and {where} {hosts.gpus}; give at most so many")
    return replace(hosts, gpus=count, gpu_bytes=size if count else None)
