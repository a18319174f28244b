"""What a Hugging Face config says about a model's size, read without importing torch or transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Model
from lemix_hpc.config.text_file import read_text
from lemix_hpc.config.validation_messages import show


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Sizes of a causal language model.

    `family` is the Hugging Face `model_type`; `layer_parameters` counts the weights of one decoder layer without norms
    and biases, `head_parameters` those of the projection to the vocabulary. `max_positions` is the longest sequence
    with learned positions, None where positions are rotary and have no hard end; `context` is that, or what the config says
    that a rotary model was made for, if it does. `layer_vectors` counts a layer's norms and biases. `inner`, `queries` and
    `keys`: widths of the feed-forward part, of all queries, and of all keys, which is that of values. `tied`: the first and the
    last stage have the same embedding.
    """

    family: str
    layers: int
    hidden: int
    vocab: int
    layer_parameters: int
    head_parameters: int
    max_positions: int | None
    layer_vectors: int
    inner: int
    queries: int
    keys: int
    tied: bool
    context: int | None = None


def describe(model: Model) -> ModelSizes:
    """Sizes of the recipe's model. Raises UserError for a missing or unreadable config, or an unknown model type."""
    return describe_config(model_config(model))


def describe_config(config: Mapping[str, Any]) -> ModelSizes:
    """As `describe`, of a Hugging Face config."""
    family = str(config.get("model_type"))
    _check_kind(family, config)
    if family == "gpt2":
        return _gpt2(config)
    if family in _LLAMA_DEFAULTS:
        return _llama(family, {**_LLAMA_DEFAULTS[family], **{k: v for k, v in config.items() if v is not None}})
    raise UserError(
        f"model: the model type {family!r} is not supported. Supported are llama (Llama 2 and 3), mistral, qwen2 and "
        "gpt2 (GPT-2, DialoGPT)."
    )


def _check_kind(family: str, config: Mapping[str, Any]) -> None:
    """Raises UserError, by their names, for kinds of models that look like those that are supported."""
    if config.get("quantization_config") is not None:
        given = config["quantization_config"]
        method = given.get("quant_method") if isinstance(given, Mapping) else None
        raise UserError(
            f"model: its weights are quantised ({method or 'quantization_config'}), and cannot be trained. Take the "
            "checkpoint that they were made from."
        )
    experts = [key for key in _EXPERTS if config.get(key) is not None]
    if family in _MIXTURES or experts:
        raise UserError(
            f"model: {family} is a mixture of experts{f' ({experts[0]})' if experts else ''}, which is not supported. "
            "Supported are llama, mistral, qwen2 and gpt2, without experts."
        )


def model_config(model: Model) -> Mapping[str, Any]:
    """The Hugging Face config of the model that is served and trained, as a mapping.

    With `model.resize` its vocabulary has a row for every token of the checkpoint's tokenizer.
    """
    config = stored_config(model)
    if not model.resize:
        return config
    from lemix_hpc.workload.tokenizer import own_tokenizer

    return {**config, "vocab_size": max(describe_config(config).vocab, own_tokenizer(model).vocab_size)}


def stored_config(model: Model) -> Mapping[str, Any]:
    """The Hugging Face config as it was given in the recipe, or is read from the checkpoint directory."""
    if model.config is not None:
        return model.config
    if model.path is None:
        raise UserError("model: an engine that computes needs `path` (a checkpoint directory) or `config`.")
    return _read_config(model.path)


def _read_config(directory: Path) -> Mapping[str, Any]:
    path = directory / "config.json"
    try:
        config = json.loads(read_text(path))
    except FileNotFoundError:
        raise UserError(
            f"model.path: there is no {path}. Give a Hugging Face checkpoint directory, which holds config.json and "
            "*.safetensors files."
        ) from None
    except OSError as error:
        raise UserError(f"model.path: {path} could not be read: {error.strerror}") from error
    except (ValueError, RecursionError, UserError) as error:
        raise UserError(f"model.path: {path} could not be read: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"model.path: {path} does not hold a JSON object.")
    return config


_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "phimoe", "olmoe", "gpt_oss", "llama4")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
LARGEST_SIZE = 1_000_000_000

# Hugging Face leaves values that equal the class's default out of hand-written configs, so the defaults are needed here.
_LLAMA_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    family: {
        "vocab_size": vocab,
        "hidden_size": 4096,
        "intermediate_size": intermediate,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    }
    | key_value_heads
    for family, vocab, intermediate, key_value_heads in (
        ("llama", 32000, 11008, {}),
        ("mistral", 32000, 14336, {"num_key_value_heads": 8}),
        ("qwen2", 151936, 22016, {"num_key_value_heads": 32}),
    )
}


def _llama(family: str, config: Mapping[str, Any]) -> ModelSizes:
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    if config.get("head_dim") is None:
        _must_divide(hidden, heads, "hidden_size", "num_attention_heads")
    head_dim = _size(config, "head_dim", default=hidden // heads)
    if head_dim % 2:
        raise UserError(
            f"model: attention heads of {head_dim} (head_dim, or hidden_size / num_attention_heads) cannot be rotated; "
            "their size must be even."
        )
    key_value_heads = _size(config, "num_key_value_heads", default=heads)
    _must_divide(heads, key_value_heads, "num_attention_heads", "num_key_value_heads")
    _check_rotary(config)
    positions = config.get("max_position_embeddings")
    queries, keys, inner = head_dim * heads, head_dim * key_value_heads, _size(config, "intermediate_size")
    return ModelSizes(
        family=family,
        layers=_size(config, "num_hidden_layers"),
        hidden=hidden,
        vocab=_size(config, "vocab_size"),
        layer_parameters=2 * hidden * (queries + keys) + 3 * hidden * inner,
        head_parameters=hidden * _size(config, "vocab_size"),
        max_positions=None,
        context=None if positions is None else _size(config, "max_position_embeddings"),
        layer_vectors=2 * hidden + (queries + 2 * keys if family == "qwen2" else 0),
        inner=inner,
        queries=queries,
        keys=keys,
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def _gpt2(config: Mapping[str, Any]) -> ModelSizes:
    # GPT-2 has key names of its own, of which Hugging Face knows the general ones as aliases.
    hidden = _size(config, "n_embd", "hidden_size", default=768)
    vocab = _size(config, "vocab_size", default=50257)
    inner = _size(config, "n_inner", default=4 * hidden)
    _must_divide(hidden, _size(config, "n_head", "num_attention_heads", default=12), "n_embd", "n_head")
    positions = _size(config, "n_positions", "max_position_embeddings", default=1024)
    return ModelSizes(
        family="gpt2",
        layers=_size(config, "n_layer", "num_hidden_layers", default=12),
        hidden=hidden,
        vocab=vocab,
        layer_parameters=4 * hidden * hidden + 2 * hidden * inner,
        head_parameters=hidden * vocab,
        max_positions=positions,
        layer_vectors=9 * hidden + inner,
        inner=inner,
        queries=hidden,
        keys=hidden,
        tied=bool(config.get("tie_word_embeddings", True)),
        context=positions,
    )


def _must_divide(whole: int, parts: int, name: str, by: str) -> None:
    if whole % parts:
        raise UserError(f"model: the config's {name} is {whole}, which is not a multiple of its {by}, {parts}.")


def _check_rotary(config: Mapping[str, Any]) -> None:
    """The kinds of rotary embeddings that stages have: see `lemix_hpc.engines.torch.llama`."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = given.get("rope_type", given.get("type", "default")) if isinstance(given, Mapping) else given
    if kind not in ROPE_TYPES:
        raise UserError(
            f"model: rotary embeddings of the type {kind!r}, which change with the sequence's length, are not "
            f"supported. Supported are {', '.join(ROPE_TYPES)}."
        )


def _size(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    """The first of the names that has a value."""
    for name in names:
        value = config.get(name)
        if value is not None:
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= LARGEST_SIZE:
                raise UserError(f"model: the config's {name} is {show(value)}, but it must be a positive whole number.")
            return value
    if default is None:
        raise UserError(f"model: the config has no {names[0]}.")
    return default
