"""Start all ranks of a run from here: by one launcher process, in a session of its own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

from lemix_hpc.config.errors import UserError
from lemix_hpc.launch.process import start_time
from lemix_hpc.launch.rundir import RunDir


@dataclass(frozen=True)
class Launcher:
    """The command line of mpiexec or srun, and its whole environment."""

    command: list[str]
    environment: dict[str, str]


def rank_command(run_dir: str) -> list[str]:
    """The command line of every rank. `-m mpi4py` makes an exception in one rank end all of them."""
    return [sys.executable, "-u", "-m", "mpi4py", "-m", "lemix_hpc.launch.local_rank", run_dir]


def start(run: RunDir, launcher: Launcher) -> tuple[subprocess.Popen[bytes], int]:
    """Start a run, detached from the terminal. Returns the launcher's process and its start time.

    Raises UserError with what it said if it has ended already.
    """
    with run.launcher_log.open("ab") as log:
        process = subprocess.Popen(
            launcher.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=launcher.environment,
            start_new_session=True,
        )
    started = start_time(process.pid)
    if started is None:
        said = run.launcher_log.read_text(encoding="utf-8", errors="replace").strip()
        raise UserError(f"{launcher.command[0]} ended at once: {said or 'it printed nothing'}")
    return process, started
