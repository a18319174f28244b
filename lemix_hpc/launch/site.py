"""What there is to run on: the partitions of a cluster as sinfo tells them, or this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.walltime import parse_walltime

TIMEOUT_S = 60
_FORMAT = "%P|%a|%D|%c|%m|%l|%G"
_LEAST = 2**30
"""Bytes: what sinfo says of hosts whose memory nobody has configured is 1 MiB."""


@dataclass(frozen=True, slots=True)
class Hosts:
    """Hosts that are alike. `partition`: where they are, None for this machine; `memory`: bytes of a host, and `gpu_bytes`
    of each of its `gpus`, None where nobody says; `limit_s`: the partition's time limit, None without one."""

    partition: str | None
    is_default: bool
    count: int
    cores: int
    memory: float | None
    limit_s: int | None
    gpus: int
    gpu_bytes: float | None = None

    @property
    def told(self) -> str:
        """In a line for people."""
        hosts = f"{self.count} host{'s' * (self.count != 1)}"
        return f"{self.partition}: {hosts} with {self.cores} cores and {self.gpus or 'no'} GPU{'s' * (self.gpus != 1)}"


def cluster_hosts() -> list[Hosts]:
    """Of each partition the hosts with most GPUs, among these the most; in sinfo's order. Raises UserError if sinfo fails."""
    done = _call(["sinfo", "--noheader", f"--format={_FORMAT}"])
    rows = [line.split("|") for line in done.stdout.splitlines() if line.count("|") == _FORMAT.count("|")]
    rows = [row for row in rows if row[1].strip() == "up"]
    if done.returncode or not rows:
        said = done.stderr.strip() or "it names no partition that is up"
        raise UserError(f"sinfo: {said}; give --partition none for a run on this machine")
    best: dict[str, Hosts] = {}
    for found in map(_hosts, rows):
        name = found.partition or ""
        if name not in best or (found.gpus, found.count) > (best[name].gpus, best[name].count):
            best[name] = found
    return list(best.values())


def this_machine() -> Hosts:
    """With the GPUs that nvidia-smi lists; their memory is that of the smallest."""
    sizes: list[float] = []
    if shutil.which("nvidia-smi") is not None:
        done = _call(["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"])
        # MiB; MIG and some integrated GPUs say [N/A].
        sizes = [float(line) * 2**20 for line in done.stdout.splitlines() if line.strip().isdigit()]
    return Hosts(
        partition=None,
        is_default=True,
        count=1,
        cores=len(os.sched_getaffinity(0)),
        memory=None,
        limit_s=None,
        gpus=len(sizes),
        gpu_bytes=min(sizes, default=None),
    )


def _hosts(row: list[str]) -> Hosts:
    """Of a line of sinfo. Numbers that are the least of several end in +."""
    name, _, count, cores, megabytes, limit, resources = (cell.strip() for cell in row)
    memory = float(megabytes.rstrip("+")) * 2**20
    gpus = sum(int(number) for number in re.findall(r"(?:^|,)gpu(?::[^:,(]+)?:(\d+)", resources))
    return Hosts(
        partition=name.rstrip("*"),
        is_default=name.endswith("*"),
        count=int(count),
        cores=int(cores.rstrip("+")),
        memory=memory if memory >= _LEAST else None,
        limit_s=_limit(limit),
        gpus=gpus,
    )


def _limit(text: str) -> int | None:
    try:
        return parse_walltime(text)
    except ValueError:  # infinite, n/a
        return None


def _call(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]}: it did not answer within {TIMEOUT_S} s; try again later") from None
