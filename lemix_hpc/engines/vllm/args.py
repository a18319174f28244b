"""What vLLM's engine and server are started with, from a recipe."""

from __future__ import annotations

import difflib
import os
from argparse import Namespace
from pathlib import Path
from typing import Any, NoReturn

import msgspec
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Engine, Recipe
from lemix_hpc.engines.memory_plan import CPU_CACHE_GB, planned_cache
from lemix_hpc.engines.model_sizes import model_config
from lemix_hpc.engines.vllm.executor import StageExecutor
from lemix_hpc.engines.vllm.model_files import fills, model_directory, tokenizer_directory

OURS = frozenset(
    {
        "model",
        "model_tag",
        "tokenizer",
        "served_model_name",
        "dtype",
        "seed",
        "pipeline_parallel_size",
        "distributed_executor_backend",
        "worker_cls",
        "scheduler_cls",
        "scheduling_policy",
        "async_scheduling",
        "max_num_seqs",
        "max_num_batched_tokens",
        "additional_config",
        "kv_cache_memory_bytes",
        "load_format",
    }
)
"""Arguments that the recipe's other keys decide."""


def server_args(recipe: Recipe, meeting: Path, weight_version: int = 0) -> Namespace:
    """The arguments of `vllm serve` for one node whose ranks share the directory `meeting`. `weight_version`: at the start.

    Raises UserError for an `engine.vllm.args` that vLLM does not know, or that is not the user's to choose, and for a model
    that cannot be served and trained at once.
    """
    _check_model(recipe)
    model = model_directory(recipe.model, meeting)
    args = given_args(recipe.engine, str(model))
    for name, value in _ours(recipe, model, meeting, weight_version).items():
        setattr(args, name, value)
    grammars = args.structured_outputs_config
    if grammars.backend == "auto":
        # It would take another one for what xgrammar refuses, and then compile all by that of the first request.
        grammars.backend = "xgrammar"
    validate_parsed_serve_args(args)
    return args


class _Parser(FlexibleArgumentParser):  # type: ignore[misc]
    """vLLM's, without its way of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"engine.vllm.args: `vllm serve` refuses them: {message}")


def given_args(engine: Engine, model: str) -> Namespace:
    """The arguments of `vllm serve` with those of `engine.vllm.args`, as vLLM's own parser reads them.

    Raises UserError for one that it does not know or take, or that is not the user's to choose.
    """
    parser = make_arg_parser(_Parser())
    defaults: Namespace = parser.parse_args([model])
    line = [model]
    for name, value in engine.vllm.args.items():
        if not hasattr(defaults, name):
            near = difflib.get_close_matches(name, vars(defaults), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"engine.vllm.args.{name}: `vllm serve` of this version has no such argument{hint}")
        if name in OURS:
            raise UserError(f"engine.vllm.args.{name}: the recipe's other keys decide this; remove it")
        line += _argument(name, value, getattr(defaults, name))
    args: Namespace = parser.parse_args(line)
    return args


def _argument(name: str, value: Any, default: Any) -> list[str]:
    """As on the command line."""
    option = f"--{name.replace('_', '-')}"
    if value is None or (value is False and default is False):
        return []
    if isinstance(value, bool):
        return [option if value else f"--no-{option.removeprefix('--')}"]
    if isinstance(value, dict):
        return [option, msgspec.json.encode(value).decode()]
    return [option, *map(str, value if isinstance(value, list) else [value])]


def _ours(recipe: Recipe, model: Path, meeting: Path, weight_version: int) -> dict[str, Any]:
    engine = recipe.engine
    cpu = current_platform.is_cpu()
    cache = _cache_bytes(recipe)
    settings: dict[str, Any] = {
        "model": str(model),
        "tokenizer": str(tokenizer_directory(recipe.model, meeting)),
        "served_model_name": [model_name(recipe)],
        "dtype": ("float32" if cpu else "bfloat16") if engine.dtype == "auto" else engine.dtype,
        "seed": recipe.seed,
        "pipeline_parallel_size": recipe.nodes.stages,
        "distributed_executor_backend": StageExecutor,
        "worker_cls": "lemix_hpc.engines.vllm.worker.StageWorker",
        "scheduler_cls": "lemix_hpc.engines.vllm.scheduler.VersionedScheduler",
        # The policy's order among waiting requests is theirs in the engine too.
        "scheduling_policy": "priority",
        # With it a batch is scheduled before the one in front has been answered, and knows no output tokens to send on.
        "async_scheduling": False,
        "max_num_seqs": engine.max_batch_requests,
        "max_num_batched_tokens": engine.max_batch_tokens,
        "additional_config": {
            "stages_at": str(meeting),
            "timeout_s": engine.timeout_s,
            "leader": os.getpid(),
            "weight_version": weight_version,
        },
    }
    if cache is not None:
        settings["kv_cache_memory_bytes"] = cache
    if cpu:
        settings["enforce_eager"] = True
    if fills(recipe.model):
        settings["load_format"] = "dummy"
    return settings


def _cache_bytes(recipe: Recipe) -> int | None:
    """Of the KV cache of a stage; None: vLLM takes nearly all of the GPU, which it has for itself."""
    given = recipe.engine.vllm.kv_cache_gb
    if given is not None or current_platform.is_cpu():
        return int((given or CPU_CACHE_GB) * 1e9)
    if recipe.training is None:
        return None
    return planned_cache(recipe, current_platform.get_device_total_memory())


def _check_model(recipe: Recipe) -> None:
    config = model_config(recipe.model)
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    head_dim = config.get("head_dim") or (hidden // heads if heads and hidden else None)
    if (
        current_platform.is_cpu()
        and head_dim is not None
        and head_dim not in CPUAttentionBackend.get_supported_head_sizes()
    ):
        sizes = ", ".join(map(str, CPUAttentionBackend.get_supported_head_sizes()))
        raise UserError(
            f"model: its attention heads have the size {head_dim}, and vLLM on CPUs supports {sizes}; set engine.kind: torch"
        )


def model_name(recipe: Recipe) -> str:
    """What clients call the model: its directory's name, or the recipe's."""
    return recipe.model.path.name if recipe.model.path is not None else recipe.name
