"""The start of a hand-over, on ranks that are threads and stand-ins for devices: a fault is named, and costs only this way."""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lemix_hpc.engines.torch import peer_trial
from lemix_hpc.engines.torch.cuda_ipc import CudaError
from lemix_hpc.engines.torch.hand_over import HandOver, Ticket
from lemix_hpc.engines.torch.handed_on import GRAIN
from lemix_hpc.engines.torch.peer_trial import SMALLEST, connect, others
from tests.engines.torch.late_device import LateRegion
from tests.engines.torch.thread_ranks import on_ranks

CPU = torch.device("cpu")


class Host:
    """Stages of a host that connect, one of them with a region of its own kind."""

    def __init__(self, stages: int = 3, odd: Callable[..., LateRegion] = LateRegion) -> None:
        self.stages = stages
        self.made: list[LateRegion] = []
        self._odd = odd
        self._memory: dict[bytes, torch.Tensor] = {}
        self._one = threading.Lock()

    def connect(self, nbytes: int = 0) -> list[HandOver | str]:
        def rank(comm: Any) -> HandOver | str:
            def make(size: int) -> LateRegion:
                with self._one:
                    region = (self._odd if comm.Get_rank() == 1 else LateRegion)(size, self._memory)
                    self.made.append(region)
                return region

            return connect(comm, CPU, nbytes, make)

        return on_ranks(self.stages, rank)


@pytest.fixture(autouse=True)
def _boards_lose_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(peer_trial, "SHARED_MEMORY", tmp_path)
    yield
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stages", [2, 3, 5])
def test_stages_that_read_each_other_hand_tensors_on(stages: int) -> None:
    host = Host(stages)
    ends = host.connect(6 * GRAIN + 1)
    assert {region.memory.numel() for region in host.made} == {SMALLEST}
    assert not any(region.given_back for region in host.made)
    for own, end in enumerate(ends):
        assert isinstance(end, HandOver)
        assert end.all_read
        for other in others(own, stages):
            ticket, reader = end.give(torch.full((5,), 10 * own + other, dtype=torch.uint8)), ends[other]
            assert ticket is not None
            assert isinstance(reader, HandOver)
            found = reader.take(Ticket(bytes(ticket)))
            reader.settle()
            assert found.tolist() == [10 * own + other] * 5
            reader.let_go()
        assert end.all_read


def test_a_stage_meets_its_neighbours_and_the_ends_each_other() -> None:
    assert [others(stage, 4) for stage in range(4)] == [[1, 3], [0, 2], [1, 3], [0, 2]]
    assert [others(stage, 5)[-1] for stage in range(5)] == [4, 2, 3, 4, 3]
    assert others(0, 5) == [1, 4]
    assert others(2, 5) == [1, 3]
    assert others(0, 2) == [1]


def test_a_region_is_as_large_as_it_is_asked_to_be() -> None:
    host = Host(2)
    host.connect(SMALLEST + 1)
    assert {region.memory.numel() for region in host.made} == {SMALLEST + GRAIN}


class CannotOpen(LateRegion):
    def open(self, owner: int, handle: bytes) -> None:  # noqa: ARG002
        raise CudaError("cudaIpcOpenMemHandle: invalid\nresource handle")


class CannotWrite(LateRegion):
    def write(self, source: torch.Tensor, offset: int) -> None:  # noqa: ARG002
        raise CudaError("cudaMemcpyAsync: invalid argument")


class CannotRead(LateRegion):
    def read(self, owner: int, offset: int, target: torch.Tensor) -> None:  # noqa: ARG002
        raise CudaError("cudaMemcpyAsync: peer access is not supported")


class Spoils(LateRegion):
    def read(self, owner: int, offset: int, target: torch.Tensor) -> None:
        super().read(owner, offset, target)
        self.launch(lambda: target[-1:].add_(1))


class NeverSettles(LateRegion):
    """Does not wait for what it has queued."""

    def settle(self) -> None:
        """Nothing runs."""


class NeverThere(LateRegion):
    def mark(self) -> Any:
        class Never:
            def query(self) -> bool:
                return False

        return Never()


def no_memory(size: int, host: dict[bytes, torch.Tensor]) -> LateRegion:  # noqa: ARG001
    raise CudaError("cudaMalloc: out of memory")


@pytest.mark.parametrize(
    ("odd", "fault"),
    [
        (no_memory, "stage 1: CudaError: cudaMalloc: out of memory"),
        (CannotOpen, "stage 1: CudaError: cudaIpcOpenMemHandle: invalid resource handle"),
        (CannotWrite, "stage 1: CudaError: cudaMemcpyAsync: invalid argument"),
        (CannotRead, "stage 1: CudaError: cudaMemcpyAsync: peer access is not supported"),
        (Spoils, "stage 1: what arrived from stage 0 is not what was given"),
        (NeverSettles, "stage 0: what arrived from stage 1 is not what was given"),
        (NeverThere, "stage 0: nobody lets go of what was given"),
    ],
)
def test_a_fault_is_named_on_all_stages_and_leaves_nothing(odd: Callable[..., LateRegion], fault: str) -> None:
    host = Host(3, odd)
    assert host.connect() == [fault] * 3
    assert all(region.given_back and not region.opened for region in host.made)


def test_without_shared_memory_there_is_no_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_trial, "SHARED_MEMORY", tmp_path / "none")
    host = Host(2)
    [fault, _] = host.connect()
    assert isinstance(fault, str)
    assert fault.startswith("stage 0: FileNotFoundError: ")
    assert all(region.given_back for region in host.made)


def test_stages_on_several_hosts_do_not_try(monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter("ba")
    monkeypatch.setattr(platform, "node", lambda: next(names))
    host = Host(2)
    assert host.connect() == ["the stages of a node are on 2 hosts, such as a and b"] * 2
    assert not host.made
