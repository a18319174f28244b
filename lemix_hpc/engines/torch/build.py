"""Building a stage from a recipe."""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Model, Recipe
from lemix_hpc.engines.memory_plan import stage_takes
from lemix_hpc.engines.model_sizes import describe, model_config
from lemix_hpc.engines.torch import attention
from lemix_hpc.engines.torch.captured_blocks import captured_blocks
from lemix_hpc.engines.torch.device_buffers import sends_device_memory
from lemix_hpc.engines.torch.devices import device_bytes, take
from lemix_hpc.engines.torch.gpt2 import GPT2Stage
from lemix_hpc.engines.torch.kv_cache import KeyValueCache
from lemix_hpc.engines.torch.llama import LlamaStage
from lemix_hpc.engines.torch.module import StageModule
from lemix_hpc.engines.torch.optimizer import StageOptimizer
from lemix_hpc.engines.torch.partition import layer_ranges
from lemix_hpc.engines.torch.payloads import DTYPES, Wire
from lemix_hpc.engines.torch.stage import TorchStage
from lemix_hpc.engines.torch.weights import Checkpoint, RandomWeights, WeightSource


def build_stage(recipe: Recipe, *, stage: int, device: str) -> TorchStage:
    """Stage `stage` of `recipe.nodes.stages`, with its weights, on `device` ("cpu" or "cuda:K").

    Payloads of a GPU stay in its memory where MPI can send them from there. Raises UserError for a model that is not
    supported, a broken checkpoint, or more stages than layers.
    """
    place = torch.device(device)
    take(place)
    sizes = describe(recipe.model)
    layers = layer_ranges(sizes, recipe.nodes.stages)[stage]
    config = hugging_face_config(recipe.model)
    dtype = _dtype(recipe, place)
    module = _module(config, layers, first=stage == 0, last=stage == recipe.nodes.stages - 1, device=place)
    _fill(module, weight_source(recipe, config), dtype)
    training, memory, capacity = recipe.training, recipe.policy.memory, device_bytes(recipe.engine, place)
    limited = memory.capacity_gb is not None or capacity is not None
    optimizer = None if training is None else StageOptimizer(module, training)
    return TorchStage(
        module,
        _cache(config, layers, dtype, place),
        Wire(place, device_buffers=sends_device_memory(recipe.engine, place)),
        optimizer,
        seed=recipe.seed,
        keep_graphs=training is not None and training.release == "sync",
        recompute=recipe.recompute_on(stage),
        max_positions=sizes.max_positions,
        takes=stage_takes(recipe, stage, capacity, cuda=place.type == "cuda"),
        offloads=limited and memory.mode == "offload",
        captured=captured_blocks(module, training),
    )


def hugging_face_config(model: Model) -> Any:
    """The model's config, set up for our attention. Raises UserError if Hugging Face rejects it."""
    given = dict(model_config(model))
    try:
        config = AutoConfig.for_model(given.pop("model_type"), **given)
    except StrictDataclassError as error:
        raise UserError(f"model: Hugging Face rejects the model's config: {' '.join(str(error).split())}") from error
    attention.register()
    config._attn_implementation = attention.IMPLEMENTATION
    return config


def _dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    if recipe.engine.dtype != "auto":
        return DTYPES[recipe.engine.dtype]
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def _module(config: Any, layers: range, *, first: bool, last: bool, device: torch.device) -> StageModule:
    kind = _stage_module(config)
    with torch.device("meta"):
        module = kind(config, layers, first=first, last=last, device=device)
    return module.eval()  # no dropout: a forward that is run again must give the same activations


def weight_source(recipe: Recipe, config: Any) -> WeightSource:
    """Where the initial weights come from: the recipe's checkpoint, or its seed."""
    kind = _stage_module(config)
    if recipe.model.path is not None:
        tied_names = kind.tied_names if config.tie_word_embeddings else ()
        # Named alike in all families: the embedding, and the head where that is a tensor of its own.
        resized = kind.tied_names if recipe.model.resize else ()
        return Checkpoint(recipe.model.path, prefix=kind.prefix, tied_names=tied_names, resized=resized)
    residual_layers = config.num_hidden_layers if kind is GPT2Stage else None
    return RandomWeights(recipe.seed, config.initializer_range, residual_layers)


def _stage_module(config: Any) -> type[GPT2Stage] | type[LlamaStage]:
    return GPT2Stage if config.model_type == "gpt2" else LlamaStage


def _fill(module: StageModule, source: WeightSource, dtype: torch.dtype) -> None:
    """Replace the parameters on "meta" by real ones, one tensor at a time."""
    weights = {
        name: source.read(name, parameter.shape).to(module.device, dtype)
        for name, parameter in module.named_parameters()
    }
    module.load_state_dict(weights, assign=True)


def _cache(config: Any, layers: range, dtype: torch.dtype, device: torch.device) -> KeyValueCache:
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return KeyValueCache(layers, getattr(config, "num_key_value_heads", heads), head_dim, dtype, device)
