"""Attention with grouped heads, by kernels that take them and by those that do not."""

from types import SimpleNamespace

import pytest
import torch

from lemix_hpc.engines.torch import attention
from lemix_hpc.engines.torch.attention import causal_attention


@pytest.mark.parametrize(("new", "window"), [(7, None), (1, None), (7, 3)])
def test_repeated_keys_and_values_change_nothing(new: int, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    query = torch.randn(2, 6, new, 16)
    key, value = torch.randn(2, 2, 2, 7, 16)
    grouped = causal_attention(query, key, value, 0.25, window)
    monkeypatch.setattr(attention, "_kernels_take_groups", lambda _: False)
    torch.testing.assert_close(causal_attention(query, key, value, 0.25, window), grouped)


@pytest.mark.parametrize(
    ("device", "dtype", "taken"),
    [("cuda", torch.float32, False), ("cuda", torch.bfloat16, True), ("cpu", torch.float32, True)],
)
def test_keys_and_values_are_repeated_only_where_no_fused_kernel_takes_groups(
    device: str, dtype: torch.dtype, taken: bool
) -> None:
    query = SimpleNamespace(device=torch.device(device), dtype=dtype)
    assert attention._kernels_take_groups(query) == taken  # type: ignore[arg-type]
