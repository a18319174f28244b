"""What the ranks of a doctor's job find out about where they are, as they write it down for who asked."""

from __future__ import annotations

import msgspec

FINDINGS = "findings.json"
DONE = "done"


class RankFacts(msgspec.Struct, frozen=True):
    """Of one rank. `packages` are versions by name; `cores` are those that it may use, `far_cores` of them those that are not
    near its GPU, `numa_nodes` those that they are on. `device` is torch's name for what a stage computes on, None for a leader;
    `fault` is why it has none. Memory is in bytes. `clock_off_s`: by how much it is later in the day on its host than on that
    of rank 0."""

    rank: int
    role: str
    host: str
    python: str
    packages: dict[str, str]
    cores: list[int]
    numa_nodes: list[int]
    host_memory: int
    shared_memory: int
    clock_off_s: float
    far_cores: int = 0
    device: str | None = None
    gpu: str | None = None
    model: str = ""
    device_memory: int | None = None
    driver: str | None = None
    cuda: str | None = None
    fault: str | None = None


class Link(msgspec.Struct, frozen=True):
    """Between two ranks, by MPI from host memory or by NCCL from GPU to GPU: the time of a small message one way [s], and
    what a large one moves [bytes/s]."""

    ranks: tuple[int, int]
    same_host: bool
    latency_s: float
    bandwidth: float


class DirectoryTimes(msgspec.Struct, frozen=True):
    """Of the run directory as one host has it: the middle and the longest time to write a small file that lasts, and how long a
    file of rank 0's was unseen there [s]; None if it was not seen at all."""

    host: str
    write_s: float
    longest_write_s: float
    seen_after_s: float | None


class Findings(msgspec.Struct, frozen=True):
    """`phase` is what was being tried when this was written, `DONE` at the end. `by_device`: why MPI is not to send the memory
    of GPUs, empty if it can, None if no stage has one; `by_ipc` likewise why stages cannot read each other's by CUDA IPC, and
    `nccl_fault` why NCCL does not connect the stages of a node. `sums`: what stages of different nodes sum together by torch's
    all-reduce, the slowest of them [bytes/s], None if it was not tried, or `sums_fault` tells why they cannot."""

    phase: str
    ranks: list[RankFacts] = []
    links: list[Link] = []
    directory: list[DirectoryTimes] = []
    by_device: str | None = None
    by_ipc: str | None = None
    nccl: list[Link] = []
    nccl_fault: str | None = None
    sums: float | None = None
    sums_fault: str | None = None
