"""Runs on this machine, started by mpiexec."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lemix_hpc.config.errors import UserError
from lemix_hpc.launch.launcher import Launcher

_OF_A_JOB = re.compile(r"SLURM_|PMI_|PMIX_(?!MCA_)")


def launcher(ranks: int, rank: Sequence[str]) -> Launcher:
    """mpiexec on this machine. Raises UserError if there is none."""
    return Launcher(mpiexec_command(ranks, rank), environment())


def mpiexec_command(ranks: int, command: Sequence[str]) -> list[str]:
    """mpiexec with the options of the MPI at hand. Raises UserError if there is none."""
    mpiexec = _find_mpiexec()
    version = subprocess.run(
        [mpiexec, "--version"], capture_output=True, text=True, check=False, env=environment()
    ).stdout
    open_mpi = re.search(r"Open MPI\)? v?(\d+)", version)
    options: list[str] = []
    if open_mpi is not None:
        oversubscribe = ["--map-by", ":OVERSUBSCRIBE"] if int(open_mpi[1]) >= 5 else ["--oversubscribe"]
        options = [*oversubscribe, "--bind-to", "none"]
    return [mpiexec, "-n", str(ranks), *options, *command]


def environment() -> dict[str, str]:
    """The environment of mpiexec: without the Slurm job that this may be in, over whose hosts it would spread the ranks."""
    return {name: value for name, value in os.environ.items() if not _OF_A_JOB.match(name)} | root_environment()


def root_environment() -> dict[str, str]:
    """Open MPI refuses to run as root unless told twice; nothing for other users."""
    if os.geteuid() != 0:
        return {}
    names = ("OMPI_ALLOW_RUN_AS_ROOT", "PRTE_ALLOW_RUN_AS_ROOT")
    return {variable: "1" for name in names for variable in (name, f"{name}_CONFIRM")}


def _find_mpiexec() -> str:
    beside_python = Path(sys.executable).parent / "mpiexec"
    if beside_python.exists():
        return str(beside_python)
    on_path = shutil.which("mpiexec")
    if on_path is None:
        raise UserError(
            "a local run needs mpiexec, and none is beside this Python or on PATH; "
            "install one with `pip install 'lemix-hpc[local-mpi]'`, or load your site's MPI module"
        )
    return on_path
