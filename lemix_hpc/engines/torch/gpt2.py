"""Stages of GPT-2 models, DialoGPT among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from lemix_hpc.engines.torch.module import StageModule


class _Body(nn.Module):
    h: nn.ModuleDict
    wte: nn.Embedding
    wpe: nn.Embedding
    ln_f: nn.LayerNorm


class GPT2Stage(StageModule):
    prefix = "transformer."
    tied_names = ("transformer.wte.weight", "lm_head.weight")

    def __init__(self, config: Any, layers: range, *, first: bool, last: bool, device: torch.device) -> None:
        super().__init__(config, first=first, last=last, device=device)
        self.transformer = _Body()
        self.transformer.h = nn.ModuleDict({str(index): GPT2Block(config, index) for index in layers})
        if first or (last and self.tied):
            self.transformer.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        if first:
            self.transformer.wpe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        if last:
            self.transformer.ln_f = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
            if not self.tied:
                self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.transformer.h.values())

    @property
    def embedding(self) -> nn.Embedding:
        return self.transformer.wte

    @property
    def embedding_parameters(self) -> list[torch.Tensor]:
        return [self.transformer.wte.weight, self.transformer.wpe.weight] if self.first else []

    @property
    def head_parameters(self) -> list[torch.Tensor]:
        return [*self.transformer.ln_f.parameters(), self._head_weight] if self.last else []

    @property
    def _head_weight(self) -> torch.Tensor:
        return self.embedding.weight if self.tied else self.lm_head.weight

    def embed(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.transformer.wte(tokens) + self.transformer.wpe(positions)
        return embedded

    def layer_arguments(self, _positions: torch.Tensor, _dtype: torch.dtype) -> dict[str, Any]:
        return {}

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return linear(self.transformer.ln_f(hidden), self._head_weight)
