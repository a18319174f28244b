"""Work that may take too long, fill the memory, or crash in native code, in a copy of this process, which alone ends of it."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from pathlib import Path


def start(work: Callable[[], str], cpu_s: int, most_bytes: int) -> tuple[Connection, int]:
    """Begin, with so much processor time, and memory beyond what this process has; returns where the result comes, and a pid.

    Threads of this process are not in the copy.
    """
    verdict, out = Pipe(duplex=False)
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        out.close()
        return verdict, pid
    try:
        _limit(resource.RLIMIT_CPU, cpu_s)
        _limit(resource.RLIMIT_DATA, _data_bytes() + most_bytes)
        _limit(resource.RLIMIT_CORE, 0)
        out.send(work())
    finally:
        os._exit(0)


def ended(verdict: Connection, pid: int) -> tuple[str | None, bool]:
    """Waits for the end: what the work has returned, or None and whether it was ended for its time."""
    found: str | None = None
    with verdict, contextlib.suppress(EOFError):
        found = verdict.recv()
    _, status = os.waitpid(pid, 0)
    killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return found, killed in (signal.SIGXCPU, signal.SIGKILL)


def _limit(which: int, most: int) -> None:
    _, hard = resource.getrlimit(which)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (most, most))


def _data_bytes() -> int:
    """Private memory that this process has now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5]) * resource.getpagesize()
