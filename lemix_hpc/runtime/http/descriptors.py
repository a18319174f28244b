"""File descriptors: connections must leave some for everything else that the process opens."""

from __future__ import annotations

import resource
from pathlib import Path

WANTED = 1 << 14
RESERVE = 128
"""For records, checkpoints, and the pipes and sockets of engines that are still to start."""
FEWEST = 32


def raise_limit() -> None:
    """As far as it is allowed, up to `WANTED`; for this process and those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def room() -> int:
    """How many connections there may be, at least `FEWEST`."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return WANTED
    return max(FEWEST, soft - sum(1 for _ in Path("/proc/self/fd").iterdir()) - RESERVE)
