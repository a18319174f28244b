import numpy as np
import pytest
import torch

from lemix_hpc.engines.torch.payloads import Wire


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_comes_back_from_a_received_buffer(dtype: torch.dtype) -> None:
    wire = Wire(torch.device("cpu"))
    sent = torch.randn(2, 3, 5).to(dtype)
    payload = wire.payload(sent)
    received = wire.buffer(payload.nbytes)
    received[:] = payload.data
    back = wire.tensor(type(payload)(payload.shape, payload.dtype, received))
    assert back.dtype == dtype
    assert torch.equal(back, sent)


def test_nothing_is_copied_on_the_cpu() -> None:
    wire = Wire(torch.device("cpu"))
    tensor = torch.zeros(4, 4)
    payload = wire.payload(tensor)
    tensor[1, 1] = 7.0
    assert payload.data.view(np.float32)[5] == 7.0
    assert wire.tensor(payload).data_ptr() == tensor.data_ptr()


def test_a_strided_tensor_is_sent_in_order() -> None:
    wire = Wire(torch.device("cpu"))
    tensor = torch.arange(6.0).view(2, 3).T
    assert torch.equal(wire.tensor(wire.payload(tensor)), tensor)
