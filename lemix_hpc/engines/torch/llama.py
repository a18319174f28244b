"""Stages of Llama-like models: Llama 2 and 3, Mistral, Qwen2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from lemix_hpc.config.errors import UserError
from lemix_hpc.engines.model_sizes import ROPE_TYPES
from lemix_hpc.engines.torch.module import StageModule

_LAYERS = {"llama": LlamaDecoderLayer, "mistral": MistralDecoderLayer, "qwen2": Qwen2DecoderLayer}


class _Body(nn.Module):
    layers: nn.ModuleDict
    embed_tokens: nn.Embedding
    norm: nn.Module


class LlamaStage(StageModule):
    prefix = "model."
    tied_names = ("model.embed_tokens.weight", "lm_head.weight")

    def __init__(self, config: Any, layers: range, *, first: bool, last: bool, device: torch.device) -> None:
        super().__init__(config, first=first, last=last, device=device)
        layer = _LAYERS[config.model_type]
        self.model = _Body()
        self.model.layers = nn.ModuleDict({str(index): layer(config, index) for index in layers})
        if first or (last and self.tied):
            self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if last:
            self.model.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            if not self.tied:
                self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._rotary = rotary_embedding(config, device)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.layers.values())

    @property
    def embedding(self) -> nn.Embedding:
        return self.model.embed_tokens

    @property
    def embedding_parameters(self) -> list[torch.Tensor]:
        return [self.embedding.weight] if self.first else []

    @property
    def head_parameters(self) -> list[torch.Tensor]:
        return [*self.model.norm.parameters(), self._head_weight] if self.last else []

    @property
    def _head_weight(self) -> torch.Tensor:
        return self.embedding.weight if self.tied else self.lm_head.weight

    def embed(self, tokens: torch.Tensor, _positions: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.embedding(tokens)
        return embedded

    def layer_arguments(self, positions: torch.Tensor, dtype: torch.dtype) -> dict[str, Any]:
        like = torch.empty(0, dtype=dtype, device=positions.device)
        return {"position_embeddings": self._rotary(like, positions)}

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return linear(self.model.norm(hidden), self._head_weight)


def rotary_embedding(config: Any, device: torch.device) -> Any:
    """The model's rotary embedding: (like, positions) -> (cos, sin). Raises UserError for a kind that is not supported."""
    rope_type = config.rope_parameters["rope_type"]
    if rope_type not in ROPE_TYPES:
        raise UserError(
            f"model: rotary embeddings of the type {rope_type!r}, which change with the sequence's length, are not "
            f"supported. Supported are {', '.join(ROPE_TYPES)}."
        )
    # Real memory even while the layers are built on "meta". The bound method keeps the module out of the stage's
    # submodules: its frequencies must stay float32 when the stage is cast.
    with device:
        return LlamaRotaryEmbedding(config).forward
