"""What starts all ranks from here: one command, mpiexec or srun."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Launcher:
    """The command line of mpiexec or srun, and its whole environment."""

    command: list[str]
    environment: dict[str, str]


def rank_command(directory: Path, module: str = "lemix_hpc.launch.rank") -> list[str]:
    """The command line of every rank: of a run, behind which its attempt may be named, or of another module. `-m mpi4py` makes
    an exception in one rank end all of them."""
    return [sys.executable, "-u", "-m", "mpi4py", "-m", module, str(directory)]
