"""Weights under Hugging Face's names, as vLLM's own loaders take them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from lemix_hpc.engines.torch.llama import LlamaStage
from lemix_hpc.engines.torch.weights import WeightSource

Named = Iterator[tuple[str, torch.Tensor]]


def fill(served: Any, source: WeightSource, config: Any, layers: range, *, first: bool, last: bool) -> None:
    """Give vLLM's stage the weights that the torch engine's stage would start from, bit by bit."""
    with torch.device("meta"):
        stage = LlamaStage(config, layers, first=first, last=last, device=torch.device("cpu"))
    # vLLM would round them, too, but with a warning for each.
    dtype = next(served.parameters()).dtype
    served.load_weights(
        (name, source.read(name, parameter.shape).to(dtype)) for name, parameter in stage.named_parameters()
    )


def unfused(trained: nn.Module, config: Any) -> Named:
    """The parameters of a `FusedLlamaStage`, cut into those of Hugging Face. Views, not copies."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    parts = {
        "qkv_proj": (("q_proj", "k_proj", "v_proj"), [heads * head_dim, groups * head_dim, groups * head_dim]),
        "gate_up_proj": (("gate_proj", "up_proj"), [config.intermediate_size] * 2),
    }
    for name, parameter in trained.named_parameters():
        value = parameter.detach()
        fused = next((key for key in parts if f".{key}." in name), None)
        if fused is not None:
            names, sizes = parts[fused]
            for part, rows in zip(names, torch.split(value, sizes), strict=True):
                yield name.replace(fused, part), rows
        elif name in ("model.embed_tokens.weight", "lm_head.weight"):
            yield name, value[: config.vocab_size]  # without the rows that pad the vocabulary
        else:
            yield name, value


class CopiedWeights:
    """vLLM's own copy of the weights, brought up to the trained ones on vLLM's own way."""

    def __init__(self, served: Any, trained: nn.Module, config: Any) -> None:
        self._served = served
        self._trained = trained
        self._config = config

    def publish(self) -> None:
        """Serve the trained weights as they are now."""
        with torch.no_grad():
            self._served.load_weights(unfused(self._trained, self._config))
