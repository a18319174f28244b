"""Which way a run chooses between its stages, and what it says: transfers and their faults are made up."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Engine, Model, Nodes, Recipe
from lemix_hpc.engines.torch import between_stages
from lemix_hpc.engines.torch.between_stages import Settled, settle
from lemix_hpc.engines.torch.hand_over import HandOver
from tests.engines.torch.conftest import TINY
from tests.engines.torch.late_device import LateRegion
from tests.engines.torch.thread_ranks import on_ranks

GPU = torch.device("cuda:0")


def settled(
    monkeypatch: pytest.MonkeyPatch,
    wanted: Any,
    *,
    ipc: dict[int, str],
    mpi: str | None,
    nodes: int = 2,
    stages: int = 2,
) -> list[Settled]:
    """On each stage rank, if CUDA IPC has these faults by node, and MPI this one."""

    def connect(node: Any, device: torch.device, nbytes: int, make: Any) -> HandOver | str:  # noqa: ARG001
        [number] = set(node.allgather(node.number))
        return ipc.get(number) or HandOver(0, 0, {}, LateRegion(0, {}))

    asked = []

    def why_not_by_device(comm: Any, device: torch.device) -> str | None:  # noqa: ARG001
        asked.append(comm.allgather(None))
        return mpi

    monkeypatch.setattr(between_stages, "connect", connect)
    monkeypatch.setattr(between_stages, "why_not_by_device", why_not_by_device)
    model, engine = Model(config=TINY["llama"]), Engine(device_buffers=wanted)
    recipe = Recipe(nodes=Nodes(count=nodes, stages=stages), model=model, engine=engine)

    def rank(comm: Any) -> Settled:
        number = comm.Get_rank() // stages
        split = comm.Split

        def numbered(color: int) -> Any:
            part = split(color)
            part.number = color
            return part

        comm.Split = numbered
        return settle(recipe, GPU, number, comm)

    found = on_ranks(nodes * stages, rank)
    assert len(asked) in (0, nodes * stages), "all ranks try MPI, or none"
    return found


def test_cuda_ipc_is_first(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = settled(monkeypatch, "auto", ipc={}, mpi="this MPI does not say that it can")
    assert [one.way for one in found] == ["ipc"] * 4
    assert all(one.hand_over is not None for one in found)
    assert capsys.readouterr().out == (
        "engine.device_buffers: auto: stages hand tensors on from GPU to GPU by CUDA IPC\n"
    )


@pytest.mark.parametrize(
    ("mpi", "way", "told"),
    [
        (None, "mpi", "from GPU to GPU by MPI; not by CUDA IPC: no"),
        ("it fails", "off", "through pinned host memory; not by CUDA IPC: no; not by MPI: it fails"),
    ],
)
def test_then_comes_mpi_and_then_the_host(
    mpi: str | None, way: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = settled(monkeypatch, "auto", ipc={0: "no", 1: "no"}, mpi=mpi)
    assert found == [Settled(way)] * 4  # type: ignore[arg-type]
    assert capsys.readouterr().out == f"engine.device_buffers: auto: stages hand tensors on {told}\n"


def test_each_node_has_its_own_way(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = settled(monkeypatch, "auto", ipc={1: "no", 2: "no"}, mpi="it fails", nodes=3)
    assert [one.way for one in found] == ["ipc", "ipc", "off", "off", "off", "off"]
    assert capsys.readouterr().out.splitlines() == [
        "engine.device_buffers: auto: nodes 0: stages hand tensors on from GPU to GPU by CUDA IPC",
        "engine.device_buffers: auto: nodes 1, 2: stages hand tensors on through pinned host memory; not by CUDA IPC: no; "
        "not by MPI: it fails",
    ]


def test_what_is_asked_for_by_name_and_does_not_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as refused:
        settled(monkeypatch, "ipc", ipc={1: "stage 0: CudaError: cudaMalloc: out of memory"}, mpi=None)
    assert str(refused.value) == (
        "engine.device_buffers: ipc, but the stages of node 1 cannot hand tensors on so: stage 0: CudaError: cudaMalloc: out "
        "of memory; set it to auto, mpi or off"
    )
    assert {one.way for one in settled(monkeypatch, "ipc", ipc={}, mpi=None)} == {"ipc"}


def test_one_stage_hands_nothing_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert settled(monkeypatch, "ipc", ipc={}, mpi=None, nodes=1, stages=1) == [Settled("off")]
    assert settled(monkeypatch, "auto", ipc={}, mpi=None, nodes=1, stages=1) == [Settled("mpi")]
    assert "not by CUDA IPC: a node has one stage" in capsys.readouterr().out
