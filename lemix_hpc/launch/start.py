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

import msgspec

from lemix_hpc import __version__
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.launch.launcher import rank_command
from lemix_hpc.launch.launchers import make_launcher, world_size
from lemix_hpc.launch.place import cannot_be_made
from lemix_hpc.launch.process import start_time
from lemix_hpc.launch.registry import register
from lemix_hpc.launch.rundir import RunDir, RunRecord, create_run_dir
from lemix_hpc.launch.states import FINAL, run_state
from lemix_hpc.records.attempts import attempts

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


def start(recipe: Recipe, cluster: ClusterKind, out: Path | None, *, renew: bool = False) -> StartedRun:
    """Make the run directory, and start or submit the run. It goes on when this process ends.

    `renew`: its job is to be followed by others until all is done.
    """
    if cluster != "slurm":
        # A missing MPI or allocation is told before there is a run directory.
        make_launcher(recipe, cluster, [])
    run = create_run_dir(recipe, out, for_slurm=cluster == "slurm")
    try:
        # A job's supervisor may look for the record before this process comes to write it.
        run.write_record(_record(run, recipe, cluster, renew=renew))
        started = start_in(recipe, cluster, run, renew=renew)
    except (UserError, OSError) as error:
        # Nothing was started, so there is no run.
        shutil.rmtree(run.path, ignore_errors=True)
        if isinstance(error, UserError):
            raise
        raise UserError(cannot_be_made(run.path, error)) from error
    note(started)
    return started


def resume(run: RunDir, recipe: Recipe, cluster: ClusterKind, *, renew: bool = False) -> StartedRun:
    """Start or submit another attempt of a run that has ended before its work was done: see `resumable`."""
    before = run.read_record()
    for asked_then in (run.stop, run.cancelled, run.successor):
        asked_then.unlink(missing_ok=True)
    started = start_in(recipe, cluster, run, renew=renew)
    record = msgspec.structs.replace(started.record, created=before.created)
    started = StartedRun(run, record, started.process)
    note(started)
    return started


def resumable(run: RunDir) -> RunRecord:
    """Raises UserError for a run that another attempt cannot go on with: it is under way, or done, or was none."""
    record = run.read_record()
    if record.cluster == "simulated":
        raise UserError(f"{run.id} was simulated; `lemix simulate` does it again")
    if run.profile_order.exists():
        raise UserError(f"{run.id} is a profiling job; give its `lemix profile` command again, and it goes on")
    state = run_state(run, record)
    if state not in FINAL and state != "UNKNOWN":
        raise UserError(f"{run.id} is {state}; `lemix stop {run.id}` ends it, if it is to go on elsewhere")
    attempt = run.last_attempt
    end = attempt.ended if attempt is not None else None
    if end is not None and end.reason == "finished":
        raise UserError(f"{run.id} has done all its work; `lemix report {run.id}` prints its report")
    return record


def start_in(recipe: Recipe, cluster: ClusterKind, run: RunDir, *, renew: bool = False) -> StartedRun:
    """Start or submit what is in a run directory. `note` it at once."""
    return _submit(recipe, run, renew) if cluster == "slurm" else _start_here(recipe, cluster, run)


def note(started: StartedRun) -> None:
    """Write down how a run was started, and add it to the user's list. A disk that does not take it is told: it has started."""
    try:
        started.run.write_record(started.record)
        register(started.run)
    except (UserError, OSError) as error:
        said = error if isinstance(error, UserError) else f"{started.run.record}: {error.strerror}"
        job = f"job {started.record.job}" if started.record.job is not None else f"process {started.record.pid}"
        print(f"{said}. The run has started, as {job}; `lemix ps` may not know it.", file=sys.stderr, flush=True)


def submitted(recipe: Recipe, run: RunDir, job: str, *, renew: bool = False) -> StartedRun:
    """A run that was handed to Slurm."""
    return StartedRun(run, _record(run, recipe, "slurm", job=job, renew=renew))


def _start_here(recipe: Recipe, cluster: Literal["local", "allocation"], run: RunDir) -> StartedRun:
    make_launcher(recipe, cluster, rank_command(run.path))
    process, started = _start_supervisor(run, cluster)
    job = os.environ["SLURM_JOB_ID"] if cluster == "allocation" else None
    return StartedRun(run, _record(run, recipe, cluster, job=job, pid=process.pid, pid_started=started), process)


def _start_supervisor(run: RunDir, cluster: str) -> tuple[subprocess.Popen[bytes], int]:
    """Detached from the terminal. Returns its process and start time. Raises UserError with what it said if it has ended."""
    command = [sys.executable, "-u", "-m", "lemix_hpc.launch.supervisor", str(run.path), cluster]
    with run.supervisor_log.open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    started = start_time(process.pid)
    if started is None:
        said = run.supervisor_log.read_text(encoding="utf-8", errors="replace").strip()
        raise UserError(f"the run's supervisor ended at once: {said or 'it printed nothing'}")
    return process, started


def _submit(recipe: Recipe, run: RunDir, renew: bool) -> StartedRun:
    from lemix_hpc.launch import slurm

    return submitted(recipe, run, slurm.submit(recipe, run), renew=renew)


def _record(
    run: RunDir,
    recipe: Recipe,
    cluster: ClusterKind,
    *,
    job: str | None = None,
    pid: int | None = None,
    pid_started: int | None = None,
    renew: bool = False,
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
        renew=renew,
        first_attempt=len(attempts(run.path)),
    )
