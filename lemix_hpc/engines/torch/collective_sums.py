"""Gradients summed over the same stage of several nodes where they are, by torch's all-reduce: NCCL on GPUs, gloo on CPUs."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from lemix_hpc.config.errors import UserError
from lemix_hpc.engines.protocol import Work

if TYPE_CHECKING:
    from mpi4py import MPI

START_S = 120
"""To connect at the start; a rank that takes longer hangs in a call that cannot be broken off, and ends."""
MEET_S = 60
"""Of that, to find each other at a port of the first one."""
TRIAL = 1 << 18
"""Elements of the sum that is tried then, 1 MiB."""
LONGEST = timedelta(minutes=30)
"""Of a sum by gloo; torch's own default."""
REST_S = 50e-6
"""On a CPU: gloo's threads compute on the cores that ranks have, and a request hardly notices it."""
GRACE_S = 10.0
"""After a sum has failed: who starts the ranks ends them by then if a node is gone, and knows which."""


class Pending(Protocol):
    """A sum that is under way; torch's Work."""

    def is_completed(self) -> bool: ...

    def wait(self) -> bool: ...


class Group(Protocol):
    """What sums need of a process group of torch."""

    def allreduce_coalesced(self, tensors: list[torch.Tensor]) -> Pending: ...

    def shutdown(self) -> None: ...


class CollectiveSums:
    """A process group of its own: this stage and the same one of the other nodes."""

    def __init__(self, group: Group, *, rest_s: float = 0.0) -> None:
        """`rest_s`: for how long a turn of the loop leaves the core to the group's own threads while they sum."""
        self._group = group
        self._rest_s = rest_s

    def sum(self, tensors: Sequence[torch.Tensor]) -> Work[None]:
        """Sum float32 tensors in place, all of them at once: a node that rested in between would keep the others' devices
        waiting. Meanwhile it yields. What is launched behind its end reads the sums.

        Raises RuntimeError if a node is gone.
        """
        work = self._group.allreduce_coalesced(list(tensors))
        while not work.is_completed():
            if self._rest_s:
                time.sleep(self._rest_s)
            yield
        try:
            work.wait()
        except RuntimeError:
            end = time.monotonic() + GRACE_S
            while time.monotonic() < end:
                yield
            raise

    def close(self) -> None:
        """The last call, on all nodes."""
        self._group.shutdown()


def connect(device: torch.device, stage: int, stages: MPI.Comm) -> CollectiveSums | None:
    """Connect the stages that sum with each other, and try it. Collective over `stages`, all stage ranks of a run. `stage`:
    which of the model's stages this is; -1 if its node trains with no other, and None is returned.

    Raises UserError on all of them if some cannot sum.
    """
    from mpi4py import MPI

    peers = stages.Split(MPI.UNDEFINED if stage < 0 else stage, stages.Get_rank())
    by = "NCCL" if device.type == "cuda" else "gloo"
    if stages.Get_rank() == 0:
        print(f"training.sums: collective: stages of different nodes connect by {by}, within {START_S} s", flush=True)
    sums, fault = None, None
    if peers != MPI.COMM_NULL:
        with _given_up_after(START_S):
            sums, fault = _connect(device, peers)
        if fault is not None:
            fault = f"stage {stage} on {socket.gethostname()}: {fault}"
    faults = [each for each in stages.allgather(fault) if each is not None]
    if faults:
        raise UserError(f"training.sums: collective, but nodes cannot sum by {by}: {faults[0]}; set it to messages")
    if stages.Get_rank() == 0:
        print(f"training.sums: collective: a sum by {by} over all nodes was tried, and is right", flush=True)
    return sums


def _connect(device: torch.device, peers: MPI.Comm) -> tuple[CollectiveSums | None, str | None]:
    """Or in words why not."""
    try:
        group = _group(device, _store(peers), peers.Get_rank(), peers.Get_size())
        sums = CollectiveSums(group, rest_s=REST_S if device.type == "cpu" else 0.0)
        return sums, _why_wrong(sums, device, peers)
    except RuntimeError as error:  # torch's own are kinds of it
        return None, " ".join(str(error).split())


def _store(peers: MPI.Comm) -> Any:
    """Where a group finds itself together: the first of the peers opens a port and tells the others."""
    made: Any = None
    hosts, size, limit = peers.allgather(socket.gethostname()), peers.Get_size(), timedelta(seconds=MEET_S)
    # A machine need not know its own name.
    host = hosts[0] if len(set(hosts)) > 1 else "localhost"
    make = partial(TCPStore, world_size=size, wait_for_workers=False, timeout=limit)
    try:
        if peers.Get_rank() == 0:
            made = make(host, 0, is_master=True)
    finally:
        address: tuple[str, int] | None = peers.bcast(made and (host, made.port))
    if address is None:
        raise RuntimeError("the first node opens no port")
    return made or make(*address, is_master=False)


def _group(device: torch.device, store: Any, rank: int, size: int) -> Group:
    if device.type == "cuda":
        # Whoever starts the ranks is to see which node is gone, not those that NCCL's watchdog ends for it.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
        nccl: Any = distributed.ProcessGroupNCCL
        group: Group = nccl(store, rank, size, nccl.Options())
    else:
        group = distributed.ProcessGroupGloo(store, rank, size, LONGEST)  # type: ignore[assignment]
    return group


def _why_wrong(sums: CollectiveSums, device: torch.device, peers: MPI.Comm) -> str | None:
    """Sum something whose sum is known."""
    rank, size = peers.Get_rank(), peers.Get_size()
    tried = torch.arange(TRIAL, dtype=torch.float32, device=device).fmod_(1024) + rank
    for _ in sums.sum([tried]):
        pass
    expected = torch.arange(TRIAL, dtype=torch.float32).fmod_(1024) * size + size * (size - 1) / 2
    return None if torch.equal(tried.cpu(), expected) else "the sum is wrong"


@contextlib.contextmanager
def _given_up_after(seconds: float) -> Iterator[None]:
    """End the process if it takes longer, and leave in its log where it hangs."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
