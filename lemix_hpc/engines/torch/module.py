"""The part of a model that one stage holds: its decoder layers, the embedding on the first stage, the head on the last."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from lemix_hpc.engines.torch.attention import Attend


class StageModule(nn.Module, ABC):
    """Parameters carry the names they have in the whole Hugging Face model.

    With tied embeddings, the first and the last stage both hold the embedding under its own name.
    """

    prefix: str
    """First part of the parameter names, which checkpoints of the bare transformer leave out."""
    tied_names: Sequence[str]
    """The names under which a checkpoint may store tied embeddings."""

    def __init__(self, config: Any, *, first: bool, last: bool, device: torch.device) -> None:
        """`device`: where the stage will compute; parameters may be made on "meta" and come there later."""
        super().__init__()
        self.device = device
        self.first = first
        self.last = last
        self.tied = bool(config.tie_word_embeddings)
        self.width = int(config.hidden_size)
        self.vocabulary = int(config.vocab_size)

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The decoder layers in order, whole or in parts: the pieces of training, after each of which it may rest."""

    @property
    @abstractmethod
    def embedding(self) -> nn.Embedding:
        """The token embedding; on the first stage, and on the last where it is tied."""

    @property
    @abstractmethod
    def embedding_parameters(self) -> list[torch.Tensor]:
        """What `embed` uses. Empty on all stages but the first."""

    @property
    @abstractmethod
    def head_parameters(self) -> list[torch.Tensor]:
        """What `logits` uses. Empty on all stages but the last."""

    @abstractmethod
    def embed(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """(rows, length) -> (rows, length, hidden); positions (1, length)."""

    @abstractmethod
    def layer_arguments(self, positions: torch.Tensor, dtype: torch.dtype) -> dict[str, Any]:
        """What every decoder layer wants to know of the positions (1, length)."""

    @abstractmethod
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., hidden) -> (..., vocab)."""

    @property
    def shared_embedding(self) -> torch.Tensor | None:
        """The embedding weight of which another stage holds the other copy."""
        return self.embedding.weight if self.tied and self.first != self.last else None

    def saved_parts(self, name: str, value: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """What belongs to a named parameter, of its shape, under Hugging Face's names: views, not copies."""
        yield name, value

    def run_block(
        self, block: nn.Module, hidden: torch.Tensor, arguments: dict[str, Any], attend: Attend
    ) -> torch.Tensor:
        output: torch.Tensor = block(hidden, attention_mask=None, attend=attend, **arguments)
        return output
