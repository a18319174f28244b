"""What a Hugging Face config says about a model's size, read without importing torch or transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Model


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Sizes of a causal language model.

    `family` is the Hugging Face `model_type`; `layer_parameters` counts the weights of one decoder layer without norms
    and biases, `head_parameters` those of the projection to the vocabulary. `max_positions` is the longest sequence
    with learned positions, None where positions are rotary and have no hard end. `layer_vectors` counts a layer's norms and
    biases. `inner`, `queries` and `keys`: widths of the feed-forward part, of all queries, and of all keys, which is that of
    values. `tied`: the first and the last stage have the same embedding.
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


def describe(model: Model) -> ModelSizes:
    """Sizes of the recipe's model. Raises UserError for a missing or unreadable config, or an unknown model type."""
    config = model_config(model)
    family = str(config.get("model_type"))
    if family == "gpt2":
        return _gpt2(config)
    if family in _LLAMA_DEFAULTS:
        return _llama(family, {**_LLAMA_DEFAULTS[family], **{k: v for k, v in config.items() if v is not None}})
    raise UserError(
        f"model: the model type {family!r} is not supported. Supported are llama (Llama 2 and 3), mistral, qwen2 and "
        "gpt2 (GPT-2, DialoGPT)."
    )


def model_config(model: Model) -> Mapping[str, Any]:
    """The Hugging Face config as a mapping: given in the recipe, or read from the checkpoint directory."""
    if model.config is not None:
        return model.config
    if model.path is None:
        raise UserError("model: an engine that computes needs `path` (a checkpoint directory) or `config`.")
    return _read_config(model.path)


def _read_config(directory: Path) -> Mapping[str, Any]:
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"model.path: there is no {path}. Give a Hugging Face checkpoint directory, which holds config.json and "
            "*.safetensors files."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"model.path: {path} could not be read: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"model.path: {path} does not hold a JSON object.")
    return config


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
    head_dim = _size(config, "head_dim", default=hidden // heads)
    key_value_heads = _size(config, "num_key_value_heads", default=heads)
    queries, keys, inner = head_dim * heads, head_dim * key_value_heads, _size(config, "intermediate_size")
    return ModelSizes(
        family=family,
        layers=_size(config, "num_hidden_layers"),
        hidden=hidden,
        vocab=_size(config, "vocab_size"),
        layer_parameters=2 * hidden * (queries + keys) + 3 * hidden * inner,
        head_parameters=hidden * _size(config, "vocab_size"),
        max_positions=None,
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
    return ModelSizes(
        family="gpt2",
        layers=_size(config, "n_layer", "num_hidden_layers", default=12),
        hidden=hidden,
        vocab=vocab,
        layer_parameters=4 * hidden * hidden + 2 * hidden * inner,
        head_parameters=hidden * vocab,
        max_positions=_size(config, "n_positions", "max_position_embeddings", default=1024),
        layer_vectors=9 * hidden + inner,
        inner=inner,
        queries=hidden,
        keys=hidden,
        tied=bool(config.get("tie_word_embeddings", True)),
    )


def _size(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    """The first of the names that has a value."""
    for name in names:
        value = config.get(name)
        if value is not None:
            if not isinstance(value, int) or value < 1:
                raise UserError(f"model: the config's {name} is {value!r}, but it must be a positive whole number.")
            return value
    if default is None:
        raise UserError(f"model: the config has no {names[0]}.")
    return default
