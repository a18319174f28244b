"""What sums of gradients over nodes would take by `training.sums: collective`."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import torch

from lemix_hpc.engines.torch.collective_sums import CollectiveSums, connect

if TYPE_CHECKING:
    from mpi4py import MPI

SUMMED = 64 << 20
"""Bytes of each sum."""
ROUNDS = 5


def node_sums(device: torch.device, stage: int, stages: MPI.Comm) -> float | None:
    """Bytes/s that the same `stage` of all nodes sums together, all stages at once; None for -1, a node that trains with no
    other. Collective over `stages`, all stage ranks of a run.

    Raises UserError on all of them if nodes cannot be connected.
    """
    sums = connect(device, stage, stages)
    times = [_one_sum(sums, device, stages) for _ in range(ROUNDS)]
    if sums is None:
        return None
    sums.close()
    return SUMMED / statistics.median(times)


def _one_sum(sums: CollectiveSums | None, device: torch.device, stages: MPI.Comm) -> float:
    """Seconds."""
    gradient = torch.zeros(SUMMED // 4, device=device)
    stages.Barrier()
    start = time.perf_counter()
    if sums is not None:
        for _ in sums.sum([gradient]):
            pass
    return time.perf_counter() - start
