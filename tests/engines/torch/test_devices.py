import pytest
import torch

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Engine
from lemix_hpc.engines.torch.devices import choose_device, gpu_id, mpi_sends_device_memory


@pytest.mark.parametrize(("gpus", "expected"), [(1, ["cuda:0"] * 3), (4, ["cuda:0", "cuda:1", "cuda:2"])])
def test_gpus_are_dealt_out_in_order(monkeypatch: pytest.MonkeyPatch, gpus: int, expected: list[str]) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert [choose_device(Engine(), stage) for stage in range(3)] == expected
    assert choose_device(Engine(device="cpu"), 0) == "cpu"


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device(Engine(), 0) == "cpu"
    assert gpu_id("cpu") is None
    with pytest.raises(UserError, match="no GPU is visible"):
        choose_device(Engine(device="cuda"), 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the MPI of a machine with GPUs may have been built for them")
def test_an_mpi_without_cuda_does_not_send_device_memory() -> None:
    from mpi4py import MPI  # loads the library that is asked

    assert MPI.Is_initialized()
    assert not mpi_sends_device_memory()
