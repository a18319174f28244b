"""How the run directory does: a run writes its journal there, and its hosts look for files of each other."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lemix_hpc.probe.findings import DirectoryTimes
from lemix_hpc.probe.mpi_links import quiet_barrier
from lemix_hpc.records.files import replace

if TYPE_CHECKING:
    from mpi4py import MPI

WRITES, SIZE = 20, 4096
PATIENCE_S = 20.0
"""For a file that another host has written; network file systems keep what they know of a directory for some seconds."""


def directory_times(comm: MPI.Comm, directory: Path, host: str, first_of_host: bool) -> DirectoryTimes | None:
    """Collective; None on ranks that are not the first of their host."""
    times = _write_times(directory, comm.Get_rank()) if first_of_host else []
    sign = directory / "sign"
    # It is looked for before it is there, as a run's hosts do: what a client keeps in mind is that there is none.
    sign.exists()
    quiet_barrier(comm)
    if comm.Get_rank() == 0:
        replace(sign, b"")
    comm.bcast(None)
    seen_after = _wait_for(sign) if first_of_host else None
    return DirectoryTimes(host, statistics.median(times), max(times), seen_after) if first_of_host else None


def _write_times(directory: Path, rank: int) -> list[float]:
    path, times = directory / f"rank-{rank}.trial", []
    for _ in range(WRITES):
        start = time.perf_counter()
        replace(path, bytes(SIZE), sync=True)
        times.append(time.perf_counter() - start)
    path.unlink()
    return times


def _wait_for(sign: Path) -> float | None:
    start = time.perf_counter()
    while time.perf_counter() < start + PATIENCE_S:
        if sign.exists():
            return time.perf_counter() - start
        time.sleep(0.01)
    return None
