"""A stage of a Llama-like model for training, on the very tensors that vLLM serves.

vLLM fuses projections: query, key and value in one matrix, gate and up in another. There is one Parameter for each of
vLLM's, under its name, and the parts are slices in the forward; so both sides can use one storage, whatever DeepSpeed does
to its order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import embedding, linear, silu
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lemix_hpc.engines.torch.attention import Attend
from lemix_hpc.engines.torch.llama import rotary_embedding
from lemix_hpc.engines.torch.module import StageModule

Weights = Mapping[str, torch.Tensor]


class FusedLlamaStage(StageModule):
    """Llama, Mistral and Qwen2. Named parameters are vLLM's, padding of the vocabulary included."""

    prefix = "model."
    tied_names = ("model.embed_tokens.weight", "lm_head.weight")

    def __init__(
        self, config: Any, weights: Weights, layers: range, *, first: bool, last: bool, device: torch.device
    ) -> None:
        """`weights`: those of this stage by vLLM's names; the parameters start out on the same storage."""
        super().__init__(config, first=first, last=last, device=device)
        self._fused = {
            "qkv_proj": (("q_proj", "k_proj", "v_proj"), _attention_rows(config)),
            "gate_up_proj": (("gate_proj", "up_proj"), [config.intermediate_size] * 2),
        }
        self._epsilon = config.rms_norm_eps
        self.model = nn.Module()
        decoder = {str(index): _Layer(config, weights, index) for index in layers}
        self.model.layers = nn.ModuleDict(decoder)
        self._halves = [half for layer in decoder.values() for half in layer.halves]
        if first or (last and self.tied):
            self.model.embed_tokens = _Weighted(weights, "model.embed_tokens")
        if last:
            self.model.norm = _Weighted(weights, "model.norm")
            if not self.tied:
                self.lm_head = _Weighted(weights, "lm_head")
        self._rotary = rotary_embedding(config, device)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self._halves

    @property
    def embedding(self) -> Any:
        return self.model.embed_tokens

    @property
    def embedding_parameters(self) -> list[torch.Tensor]:
        return [self.embedding.weight] if self.first else []

    @property
    def head_parameters(self) -> list[torch.Tensor]:
        return [*self.model.norm.parameters(), self._head_weight] if self.last else []  # type: ignore[union-attr]

    @property
    def _head_weight(self) -> torch.Tensor:
        weight: torch.Tensor = self.embedding.weight if self.tied else self.lm_head.weight
        return weight

    def embed(self, tokens: torch.Tensor, _positions: torch.Tensor) -> torch.Tensor:
        return embedding(tokens, self.embedding.weight)

    def layer_arguments(self, positions: torch.Tensor, dtype: torch.dtype) -> dict[str, Any]:
        like = torch.empty(0, dtype=dtype, device=positions.device)
        return {"position_embeddings": self._rotary(like, positions)}

    def saved_parts(self, name: str, value: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        fused = next((key for key in self._fused if f".{key}." in name), None)
        if fused is not None:
            parts, rows = self._fused[fused]
            for part, rows_of_part in zip(parts, torch.split(value, rows), strict=True):
                yield name.replace(fused, part), rows_of_part
        elif name in self.tied_names:
            yield name, value[: self.vocabulary]  # without the rows that pad it
        else:
            yield name, value

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        normed = _rms_norm(hidden, self.model.norm.weight, self._epsilon)  # type: ignore[arg-type, union-attr]
        # The rows that pad the vocabulary are no tokens.
        return linear(normed, self._head_weight[: self.vocabulary])


class _Weighted(nn.Module):
    """What vLLM calls a layer: a weight, and a bias if it has one."""

    def __init__(self, weights: Weights, name: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(weights[f"{name}.weight"].detach())
        bias = weights.get(f"{name}.bias")
        self.bias = None if bias is None else nn.Parameter(bias.detach())

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return linear(hidden, self.weight, self.bias)


class _Layer(nn.Module):
    def __init__(self, config: Any, weights: Weights, index: int) -> None:
        super().__init__()
        name = f"model.layers.{index}"
        self.self_attn = _Attention(config, weights, index)
        self.mlp = _FeedForward(weights, f"{name}.mlp")
        self.input_layernorm = _Weighted(weights, f"{name}.input_layernorm")
        self.post_attention_layernorm = _Weighted(weights, f"{name}.post_attention_layernorm")
        # In a tuple, since modules would give the parameters a second name.
        self.halves = (
            _Half(self.input_layernorm, self.self_attn, config.rms_norm_eps),
            _Half(self.post_attention_layernorm, self.mlp, config.rms_norm_eps),
        )


class _Half(nn.Module):
    """One residual branch of a layer, with its norm: so much training a request may have to wait for."""

    def __init__(self, norm: _Weighted, branch: _Attention | _FeedForward, epsilon: float) -> None:
        super().__init__()
        self._norm = norm
        self._branch = branch
        self._epsilon = epsilon

    def forward(
        self,
        hidden: torch.Tensor,
        *,
        attention_mask: None,  # noqa: ARG002  part of how blocks are called
        attend: Attend,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        normed = _rms_norm(hidden, self._norm.weight, self._epsilon)
        output: torch.Tensor = hidden + self._branch(normed, attend, position_embeddings)
        return output


class _Attention(nn.Module):
    def __init__(self, config: Any, weights: Weights, index: int) -> None:
        super().__init__()
        name = f"model.layers.{index}.self_attn"
        self._head_dim = _head_dim(config)
        self._sizes = _attention_rows(config)
        self._index = index
        self._window = _window(config, index)
        self.qkv_proj = _Weighted(weights, f"{name}.qkv_proj")
        self.o_proj = _Weighted(weights, f"{name}.o_proj")

    def forward(
        self, hidden: torch.Tensor, attend: Attend, rotation: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        parts = self.qkv_proj(hidden).split(self._sizes, dim=-1)
        query, key, value = (part.unflatten(-1, (-1, self._head_dim)).transpose(1, 2) for part in parts)
        query, key = apply_rotary_pos_emb(query, key, *rotation)
        attended = attend(self._index, query, key, value, self._head_dim**-0.5, self._window)
        output: torch.Tensor = self.o_proj(attended.transpose(1, 2).flatten(2))
        return output


class _FeedForward(nn.Module):
    def __init__(self, weights: Weights, name: str) -> None:
        super().__init__()
        self.gate_up_proj = _Weighted(weights, f"{name}.gate_up_proj")
        self.down_proj = _Weighted(weights, f"{name}.down_proj")

    def forward(
        self,
        hidden: torch.Tensor,
        attend: Attend,  # noqa: ARG002  both branches are called alike
        rotation: tuple[torch.Tensor, torch.Tensor],  # noqa: ARG002
    ) -> torch.Tensor:
        gate, up = self.gate_up_proj(hidden).chunk(2, dim=-1)
        output: torch.Tensor = self.down_proj(silu(gate) * up)
        return output


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or int(config.hidden_size) // int(config.num_attention_heads)


def _attention_rows(config: Any) -> list[int]:
    """Rows of query, key and value in their fused matrix."""
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    return [each * _head_dim(config) for each in (heads, groups, groups)]


def _window(config: Any, index: int) -> int | None:
    """The attention window of a layer, as Hugging Face reads it from the config."""
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    return window if kinds is None or kinds[index] == "sliding_attention" else None


def _rms_norm(hidden: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Root-mean-square norm in float32, as Hugging Face computes it."""
    wide = hidden.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return weight * wide.to(hidden.dtype)
