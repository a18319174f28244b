"""What vLLM's engine and server are started with, from a recipe."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.memory_plan import CPU_CACHE_GB, planned_cache
from lemix_hpc.engines.model_sizes import model_config
from lemix_hpc.engines.vllm.executor import StageExecutor
from lemix_hpc.engines.vllm.model_files import model_directory, tokenizer_directory

FAMILIES = ("llama", "mistral", "qwen2")


def server_args(recipe: Recipe, meeting: Path, weight_version: int = 0) -> Namespace:
    """The arguments of `vllm serve` for one node whose ranks share the directory `meeting`. `weight_version`: at the start.

    Raises UserError for an `engine.vllm.args` that vLLM does not know, or that is not the user's to choose, and for a model
    that cannot be served and trained at once.
    """
    _check_model(recipe)
    model = model_directory(recipe.model, meeting)
    args: Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args([str(model)])
    ours = _ours(recipe, model, meeting, weight_version)
    for name, value in recipe.engine.vllm.args.items():
        if not hasattr(args, name):
            raise UserError(f"engine.vllm.args.{name}: `vllm serve` of this version has no such argument")
        if name in ours:
            raise UserError(f"engine.vllm.args.{name}: the recipe's other keys decide this; remove it")
        setattr(args, name, value)
    for name, value in ours.items():
        setattr(args, name, value)
    validate_parsed_serve_args(args)
    return args


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
    if recipe.model.path is None:
        settings["load_format"] = "dummy"  # the stages fill in the recipe's own random weights
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
    family = config.get("model_type")
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(f"model: engine vllm serves and trains {known}, and this is {family}; set engine.kind: torch")
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
