"""The products of vLLM's layers on CPUs, which leave the weights as training needs them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import linear

from lemix_hpc.engines.vllm import worker

TYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def layer() -> Callable[[torch.dtype], Any]:
    def make(dtype: torch.dtype) -> Any:
        torch.manual_seed(0)
        made = torch.nn.Linear(64, 48, dtype=dtype).requires_grad_(False)
        worker.keep_weights(made, True)
        return made

    return make


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_products_are_right_whatever_the_processor(
    layer: Callable[[torch.dtype], Any], dtype: torch.dtype, biased: bool
) -> None:
    made = layer(dtype)
    hidden, bias = torch.randn(5, 64, dtype=dtype), made.bias if biased else None
    product = made.cpu_linear(hidden, made.weight, bias)
    assert product.dtype == dtype
    exact = linear(hidden.double(), made.weight.double(), None if bias is None else bias.double())
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(product.double(), exact, rtol=tolerance, atol=tolerance)
    assert made.weight.shape == (48, 64), "nothing was packed or dropped"


@pytest.mark.parametrize("supported", [True, False])
def test_bfloat16_is_left_to_pytorch_where_onednn_has_no_products_of_it(
    layer: Callable[[torch.dtype], Any], monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    assert worker.onednn_multiplies(torch.float32)
    assert worker.onednn_multiplies(torch.bfloat16) == supported
    assert (layer(torch.bfloat16).cpu_linear is linear) == (not supported)
    assert layer(torch.float32).cpu_linear is not linear
