"""How long messages take between the ranks of a run that send some to each other, and what they move."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from lemix_hpc.probe.findings import Link
from lemix_hpc.runtime.transport.rank_layout import SCHEDULER_RANK, Layout

if TYPE_CHECKING:
    from mpi4py import MPI

ROUNDS, WARM_UP = 50, 10
SMALL, LARGE = 64, 16 << 20
LARGE_ROUNDS = 5
TAG = 65


def pairs(layout: Layout) -> Iterator[tuple[int, int]]:
    """The scheduler rank and each other leader, each leader and its first stage, and neighbouring stages."""
    for node in range(layout.nodes):
        if layout.leader(node) != SCHEDULER_RANK:
            yield SCHEDULER_RANK, layout.leader(node)
        yield layout.leader(node), layout.worker(node, 0)
        for stage in range(layout.stages - 1):
            yield layout.worker(node, stage), layout.worker(node, stage + 1)


def links(comm: MPI.Comm, layout: Layout) -> list[Link]:
    """One pair after the other, while all others sleep. Collective; the links are those that this rank is the first of."""
    rank, measured = comm.Get_rank(), []
    hosts = comm.allgather(host_number(comm))
    for first, second in pairs(layout):
        if rank in (first, second):
            latency = _round_trip(comm, SMALL, ROUNDS + WARM_UP, first, second) / 2
            seconds = _round_trip(comm, LARGE, LARGE_ROUNDS, first, second) / 2
            if rank == first:
                measured.append(Link((first, second), hosts[first] == hosts[second], latency, LARGE / seconds))
        quiet_barrier(comm)
    return measured


def host_number(comm: MPI.Comm) -> int:
    """The least rank of those on this host, which no other host has. Collective."""
    from mpi4py import MPI

    host = comm.Split_type(MPI.COMM_TYPE_SHARED)
    least: int = host.allreduce(comm.Get_rank(), MPI.MIN)
    host.Free()
    return least


def quiet_barrier(comm: MPI.Comm) -> None:
    """A barrier that leaves the cores to those who are still measuring."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(1e-3)


def _round_trip(comm: MPI.Comm, size: int, rounds: int, first: int, second: int) -> float:
    """The middle one [s], on both ranks."""
    buffer, times = np.zeros(size, dtype=np.uint8), []
    for _ in range(rounds):
        start = time.perf_counter()
        if comm.Get_rank() == first:
            comm.Send(buffer, second, TAG)
            comm.Recv(buffer, second, TAG)
        else:
            comm.Recv(buffer, first, TAG)
            comm.Send(buffer, first, TAG)
        times.append(time.perf_counter() - start)
    return statistics.median(times)
