"""Whether MPI is to send a GPU's memory. There is none here: CPU tensors stand in for it, and a communicator for MPI."""

from typing import Any

import pytest
import torch
from mpi4py import MPI

from lemix_hpc.config.recipe import Engine, Recipe
from lemix_hpc.engines.build import Device, settle_device_buffers
from lemix_hpc.engines.torch import device_buffers, devices
from lemix_hpc.engines.torch.device_buffers import (
    library_takes_device_memory,
    sends_device_memory,
    why_not_by_device,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the MPI of a machine with GPUs may have been built for them")
def test_an_mpi_without_cuda_does_not_send_device_memory() -> None:
    assert MPI.Is_initialized()
    assert not library_takes_device_memory()


@pytest.mark.parametrize("says", [False, True])
def test_the_recipe_goes_before_what_the_library_says(monkeypatch: pytest.MonkeyPatch, says: bool) -> None:
    monkeypatch.setattr(device_buffers, "library_takes_device_memory", lambda: says)
    asked = {
        given: sends_device_memory(Engine(device_buffers=given), GPU) for given in ("auto", "ipc", "mpi", "on", "off")
    }
    assert asked == {"auto": says, "ipc": False, "mpi": True, "on": True, "off": False}
    assert not sends_device_memory(Engine(device_buffers="mpi"), CPU)


def test_on_is_another_name_for_mpi() -> None:
    assert Engine(device_buffers="on").device_buffers == "mpi"


class Alone:
    """A stage rank's MPI, where it is alone and sends to itself."""

    def __init__(self, spoils: bool = False, fails: bool = False) -> None:
        self._spoils, self._fails = spoils, fails

    def allgather(self, value: Any) -> list[Any]:
        return [value]

    def Split(self, color: int) -> "Alone":  # noqa: ARG002, N802
        return self

    def Get_rank(self) -> int:  # noqa: N802  as in MPI
        return 0

    def Get_size(self) -> int:  # noqa: N802
        return 1

    def Irecv(self, memory: torch.Tensor, source: int) -> "Alone":  # noqa: N802
        assert source == 0
        self._into = memory
        return self

    def Isend(self, memory: torch.Tensor, target: int) -> "Alone":  # noqa: N802
        assert target == 0
        if self._fails:
            raise RuntimeError("MPI_ERR_BUFFER")
        self._into.copy_(memory)
        if self._spoils:
            self._into[-1] += 1
        return self

    def Wait(self) -> None:  # noqa: N802
        """It is there."""


def test_a_transfer_shows_whether_it_works() -> None:
    real: Any = MPI.COMM_SELF
    assert why_not_by_device(real, CPU) is None
    stand_in: Any = Alone(spoils=True)
    assert why_not_by_device(stand_in, CPU) == "stage rank 0 of 1: what arrived is not what was sent"
    stand_in = Alone(fails=True)
    assert why_not_by_device(stand_in, CPU) == "stage rank 0 of 1: RuntimeError: MPI_ERR_BUFFER"


@pytest.mark.parametrize(
    ("says", "fault", "settled", "told"),
    [
        (True, None, "mpi", "from GPU to GPU by MPI"),
        (True, "RuntimeError: no", "off", "not by MPI: stage rank 0 of 1: RuntimeError: no"),
        (False, None, "off", "not by MPI: this MPI does not say that it can"),
    ],
)
def test_a_run_settles_it_at_the_start_and_says_so(
    says: bool,
    fault: str | None,
    settled: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(device_buffers, "library_takes_device_memory", lambda: says)
    monkeypatch.setattr(device_buffers, "_fault", lambda *_: fault)
    monkeypatch.setattr(devices, "take", lambda _: None)
    alone: Any = Alone()
    recipe, hand_over = settle_device_buffers(Recipe(), Device("cuda:0", "GPU-1"), 0, alone)
    assert recipe.engine.device_buffers == settled
    assert hand_over is None
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("device", [None, Device("cpu"), Device("emulated")])
def test_nothing_is_tried_without_gpus(device: Device | None) -> None:
    alone: Any = Alone(fails=True)
    assert settle_device_buffers(Recipe(), device, 0, alone) == (Recipe(), None)
    given = Recipe(engine=Engine(device_buffers="mpi"))
    assert settle_device_buffers(given, Device("cuda:0", "GPU-1"), 0, alone)[0] is given
