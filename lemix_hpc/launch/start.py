"""Start a run: on this machine or as a Slurm job."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lemix_hpc import __version__
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.launch import allocation, local
from lemix_hpc.launch.launcher import Launcher
from lemix_hpc.launch.launcher import start as launch
from lemix_hpc.launch.registry import register
from lemix_hpc.launch.rundir import RunDir, RunRecord, create_run_dir
from lemix_hpc.runtime.transport.rank_layout import Layout

ClusterKind = Literal["local", "slurm", "allocation"]


@dataclass(frozen=True)
class StartedRun:
    run: RunDir
    record: RunRecord
    process: subprocess.Popen[bytes] | None = None


def choose_cluster(asked: str) -> ClusterKind:
    """`auto` is Slurm where sbatch is installed and the controller answers. Raises UserError for an absent Slurm."""
    if asked == "local":
        return "local"
    if asked == "allocation":
        return "allocation"
    if asked == "slurm":
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise UserError(
                "--cluster slurm: sbatch and srun are not on PATH; load your site's Slurm, or use --cluster local"
            )
        return "slurm"
    return "slurm" if slurm_answers() else "local"


def slurm_answers() -> bool:
    """Whether Slurm is installed here and its controller can be reached."""
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        return False
    try:
        return subprocess.run(["sinfo", "--noheader"], capture_output=True, timeout=20, check=False).returncode == 0
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False


def world_size(recipe: Recipe) -> int:
    """MPI ranks of a run: a leader and the stages of every node."""
    return Layout(recipe.nodes.count, recipe.nodes.stages).size


def start(recipe: Recipe, cluster: ClusterKind, out: Path | None) -> StartedRun:
    """Make the run directory, and start or submit the run. It goes on when this process ends."""
    if cluster != "slurm":
        # A missing MPI or allocation is told before there is a run directory.
        make_launcher(recipe, cluster, Path())
    run = create_run_dir(recipe, out)
    try:
        started = start_in(recipe, cluster, run)
    except UserError:
        # Nothing was started, so there is no run.
        shutil.rmtree(run.path)
        raise
    note(started)
    return started


def start_in(recipe: Recipe, cluster: ClusterKind, run: RunDir) -> StartedRun:
    """Start or submit what is in a run directory. `note` it at once."""
    return _submit(recipe, run) if cluster == "slurm" else _start_here(recipe, cluster, run)


def note(started: StartedRun) -> None:
    """Write down how a run was started, and add it to the user's list."""
    started.run.write_record(started.record)
    register(started.run)


def submitted(recipe: Recipe, run: RunDir, job: str) -> StartedRun:
    """A run that was handed to Slurm."""
    return StartedRun(run, _record(run, recipe, "slurm", job=job))


def make_launcher(recipe: Recipe, cluster: Literal["local", "allocation"], run_dir: Path) -> Launcher:
    """What starts all ranks from here. Raises UserError where that is not possible."""
    if cluster == "allocation":
        return allocation.launcher(recipe, run_dir)
    return local.launcher(world_size(recipe), run_dir)


def _start_here(recipe: Recipe, cluster: Literal["local", "allocation"], run: RunDir) -> StartedRun:
    process, started = launch(run, make_launcher(recipe, cluster, run.path))
    job = os.environ["SLURM_JOB_ID"] if cluster == "allocation" else None
    return StartedRun(run, _record(run, recipe, cluster, job=job, pid=process.pid, pid_started=started), process)


def _submit(recipe: Recipe, run: RunDir) -> StartedRun:
    from lemix_hpc.launch import slurm

    return submitted(recipe, run, slurm.submit(recipe, run))


def _record(
    run: RunDir,
    recipe: Recipe,
    cluster: ClusterKind,
    *,
    job: str | None = None,
    pid: int | None = None,
    pid_started: int | None = None,
) -> RunRecord:
    return RunRecord(
        id=run.id,
        cluster=cluster,
        created=time.time(),
        command=sys.argv,
        host=socket.gethostname(),
        user=getpass.getuser(),
        version=__version__,
        world_size=world_size(recipe),
        job=job,
        pid=pid,
        pid_started=pid_started,
    )
