"""Keys and values of the requests that this stage's layers have seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class KeyValueCache:
    """One buffer per request, (2, layers, key-value heads, capacity, head_dim), made with a quarter to spare each time."""

    _SPARE = 32

    def __init__(self, layers: range, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self._layers = layers
        self._heads = heads
        self._head_dim = head_dim
        self._dtype = dtype
        self._device = device
        self._buffers: dict[int, torch.Tensor] = {}
        self._lengths: dict[int, int] = {}

    def reserve(self, request: int, cached: int, new: int) -> None:
        """Make room for `new` tokens on top of the first `cached` ones; what came after those is dropped.

        Raises ValueError if fewer than `cached` tokens are kept.
        """
        kept = self._lengths.get(request, 0)
        if cached > kept:
            raise ValueError(f"request {request} wants {cached} cached tokens, but {kept} are kept")
        old = self._buffers.get(request)
        capacity = 0 if old is None else old.shape[3]
        needed = cached + new
        if needed > capacity:
            capacity = needed + needed // 4 + self._SPARE
            buffer = torch.empty(
                (2, len(self._layers), self._heads, capacity, self._head_dim), dtype=self._dtype, device=self._device
            )
            if old is not None:
                buffer[:, :, :, :cached] = old[:, :, :, :cached]
            self._buffers[request] = buffer
        self._lengths[request] = needed

    def append(
        self, request: int, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new tokens' (1, heads, new, head_dim) of one layer in the reserved room; return those of all tokens."""
        length = self._lengths[request]
        kept = self._buffers[request][:, layer - self._layers.start, :, :length].unsqueeze(1)
        kept[0, :, :, length - key.shape[2] :] = key
        kept[1, :, :, length - key.shape[2] :] = value
        return kept[0], kept[1]

    def forget(self, requests: Sequence[int]) -> None:
        for request in requests:
            self._buffers.pop(request, None)
            self._lengths.pop(request, None)
