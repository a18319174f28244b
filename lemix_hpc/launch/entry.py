"""What every MPI rank of a run does, however it was started."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from lemix_hpc.launch.rundir import RunDir
from lemix_hpc.records.attempts import Attempt, claim

if TYPE_CHECKING:
    from mpi4py import MPI

    from lemix_hpc.config.recipe import Recipe


def run_rank(run_dir: str) -> None:
    """Run this rank's part of the run in `run_dir`; collective over MPI.COMM_WORLD.

    An exception ends all ranks: it is written to the rank's log, in a line of failure.txt and on the job's stderr, and the
    MPI world is aborted, since other ranks may wait for this one for ever.
    """
    from mpi4py import MPI

    run = RunDir(Path(run_dir))
    world = MPI.COMM_WORLD
    job_stderr, attempt, role = os.dup(2), None, "role not known yet"
    try:
        attempt = Attempt(Path(world.bcast(str(claim(run.path).path) if world.Get_rank() == 0 else "")))
        _redirect_output(run.rank_log(attempt.number, world.Get_rank()))
        # Under submitit TERM is ignored, and a cancelled job would live on until Slurm kills it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _set_environment(world)
        recipe = _load(run)
        role = _role(recipe, world)
        _run(recipe, run, attempt, world)
    except BaseException as error:  # noqa: BLE001  whatever it is, the other ranks must not wait for this one
        traceback.print_exc()
        _tell(run, attempt, world.Get_rank(), role, error, job_stderr)
        world.Abort(1)


def _redirect_output(log: Path) -> None:
    """Send stdout and stderr to the rank's log, also those of C libraries."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _set_environment(world: MPI.Comm) -> None:
    from mpi4py import MPI

    os.environ["HF_HUB_OFFLINE"] = "1"
    host = world.Split_type(MPI.COMM_TYPE_SHARED)
    ranks, cores = host.Get_size(), len(os.sched_getaffinity(0))
    host.Free()
    # A rank bound to its own cores by Slurm sees only those; an unbound one sees, and shares, all cores of the host.
    bound = cores <= int(os.environ.get("SLURM_CPUS_PER_TASK", "0"))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores if bound else cores // ranks)))


def _load(run: RunDir) -> Recipe:
    from lemix_hpc.config.load import load_recipe

    return load_recipe(run.recipe)


def _role(recipe: Recipe, world: MPI.Comm) -> str:
    from lemix_hpc.config.errors import UserError
    from lemix_hpc.runtime.transport.rank_layout import Layout

    layout = Layout(recipe.nodes.count, recipe.nodes.stages)
    if world.Get_size() != layout.size:
        raise UserError(
            f"the recipe needs {layout.size} MPI ranks, {layout.nodes} x (1 leader + {layout.stages} stages), and "
            f"{world.Get_size()} were started; `lemix doctor` checks that MPI and the launcher fit together"
        )
    return layout.role(world.Get_rank())


def _run(recipe: Recipe, run: RunDir, attempt: Attempt, world: MPI.Comm) -> None:
    if run.profile_order.exists():
        _profile(recipe, run)
        return
    from lemix_hpc.runtime.main import run as run_distributed

    run_distributed(recipe, attempt)
    if world.Get_rank() == 0:
        from lemix_hpc.report.build import build_report

        build_report(run.path)


def _profile(recipe: Recipe, run: RunDir) -> None:
    import msgspec

    from lemix_hpc.measure.main import ProfileOrder, profile

    profile(recipe, run.path, msgspec.json.decode(run.profile_order.read_bytes(), type=ProfileOrder))


def _tell(run: RunDir, attempt: Attempt | None, rank: int, role: str, error: BaseException, job_stderr: int) -> None:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    line = f"rank {rank} ({role}) failed: {reason}"
    if attempt is not None:
        line += f"; log: {run.rank_log(attempt.number, rank)}"
        # One write in append mode: several ranks may fail at once.
        with attempt.failure.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        attempt.publish(attempt.failure.name)
        attempt.make_current()
    os.write(job_stderr, line.encode() + b"\n")
