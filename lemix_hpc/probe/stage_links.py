"""Whether torch's own communication connects the stages of a node from device to device: NCCL on GPUs."""

from __future__ import annotations

import statistics
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from lemix_hpc.probe.findings import Link

TIMEOUT = timedelta(seconds=60)
ROUNDS = 10
SMALL, LARGE = 64, 64 << 20


def stage_links(stage: int, ranks: list[int], device: torch.device, meeting: Path) -> list[Link]:
    """Between neighbours, one pair after the other; those that this stage is the first of. Collective over the stages of a
    node, whose `ranks` in the run are these; `meeting` is a file that does not exist.

    Raises RuntimeError, or another error of torch's, where they do not connect.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, init_method=f"file://{meeting}", rank=stage, world_size=len(ranks), timeout=TIMEOUT
    )
    try:
        measured = []
        for first in range(len(ranks) - 1):
            if stage in (first, first + 1):
                other = first + 1 if stage == first else first
                latency, seconds = (_one_way(size, stage == first, other, device) for size in (SMALL, LARGE))
                if stage == first:
                    measured.append(Link((ranks[first], ranks[first + 1]), True, latency, LARGE / seconds))
            dist.barrier()
        return measured
    finally:
        dist.destroy_process_group()


def _one_way(size: int, sends: bool, other: int, device: torch.device) -> float:
    """Half of the middle time to another rank and back [s]."""
    buffer, times = torch.zeros(size, dtype=torch.uint8, device=device), []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for turn in (sends, not sends):
            if turn:
                dist.send(buffer, other)
            else:
                dist.recv(buffer, other)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times) / 2
