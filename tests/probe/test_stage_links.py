"""torch's own communication between stages: gloo on CPUs, in the place of NCCL."""

import multiprocessing
from pathlib import Path

import torch

from lemix_hpc.probe.findings import Link
from lemix_hpc.probe.stage_links import stage_links


def measure(rank: int, meeting: Path) -> list[Link]:
    torch.set_num_threads(1)
    return stage_links(rank, [4, 5, 6], torch.device("cpu"), meeting)


def test_neighbours_are_measured_one_pair_after_the_other(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.starmap(measure, [(rank, tmp_path / "meeting") for rank in range(3)], chunksize=1)
    assert [[link.ranks for link in links] for links in found] == [[(4, 5)], [(5, 6)], []]
    assert all(link.latency_s > 0 and link.bandwidth > 1e6 for links in found for link in links)
