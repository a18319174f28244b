"""Causal attention, and the hook that lets Hugging Face's layers leave the choice of keys and values to the caller."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import AttentionInterface

IMPLEMENTATION = "lemix_stage"


class Attend(Protocol):
    def __call__(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        window: int | None,
        /,
    ) -> torch.Tensor:
        """Attention of one decoder layer; query (rows, heads, length, head_dim), as is the result."""
        ...


def register() -> None:
    """Make `config._attn_implementation = IMPLEMENTATION` call the `attend` argument that is given to the layers."""
    AttentionInterface.register(IMPLEMENTATION, _attention)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: None,
    *,
    attend: Attend,
    scaling: float,
    sliding_window: int | None = None,
    **_unused: Any,
) -> tuple[torch.Tensor, None]:
    return attend(module.layer_idx, query, key, value, scaling, sliding_window).transpose(1, 2), None


def attend_within_rows(
    _layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int | None
) -> torch.Tensor:
    """Each row is one sequence from its first token on: training."""
    return causal_attention(query, key, value, scale, window)


def causal_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int | None
) -> torch.Tensor:
    """Attention of the last `new` positions to all `total`, each to itself and at most `window - 1` before it.

    query (rows, heads, new, head_dim); key and value (rows, key-value heads, total, head_dim).
    """
    new, total = query.shape[2], key.shape[2]
    if new == 1 and window is not None:
        key, value = key[:, :, -window:], value[:, :, -window:]
    elif new > 1 and (new < total or (window is not None and total > window)):
        return _masked(query, key, value, scale, window)
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and not _kernels_take_groups(query):
        key, value = _repeated(key, groups), _repeated(value, groups)
    return scaled_dot_product_attention(
        query, key, value, scale=scale, is_causal=new > 1, enable_gqa=query.shape[1] != key.shape[1]
    )


def _kernels_take_groups(query: torch.Tensor) -> bool:
    """Whether a fused kernel takes grouped heads. On GPUs those of 16 bits do; the one for float32 does not, and what is left
    is slow and keeps all scores."""
    return query.device.type != "cuda" or query.dtype in (torch.float16, torch.bfloat16)


def _repeated(heads: torch.Tensor, groups: int) -> torch.Tensor:
    return heads.repeat_interleave(groups, dim=1)


def _masked(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int | None
) -> torch.Tensor:
    new, total = query.shape[2], key.shape[2]
    distance = (
        torch.arange(total - new, total, device=query.device)[:, None]
        - torch.arange(total, device=query.device)[None, :]
    )
    visible = (distance >= 0) & (distance < (total if window is None else window))
    # With a mask, grouped heads would fall back to the slowest kernel; repeating keys and values avoids it.
    groups = query.shape[1] // key.shape[1]
    key, value = _repeated(key, groups), _repeated(value, groups)
    return scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scale)
