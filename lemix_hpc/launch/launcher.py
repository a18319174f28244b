"""What starts all ranks of a run from here: one command, mpiexec or srun."""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Launcher:
    """The command line of mpiexec or srun, and its whole environment."""

    command: list[str]
    environment: dict[str, str]


def rank_command(run_dir: str) -> list[str]:
    """The command line of every rank, behind which its attempt may be named. `-m mpi4py` makes an exception in one rank end all
    of them."""
    return [sys.executable, "-u", "-m", "mpi4py", "-m", "lemix_hpc.launch.rank", run_dir]
