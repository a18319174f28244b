"""What every MPI rank of a run does, however it was started."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from lemix_hpc.engines.compile_caches import keep_on_host
from lemix_hpc.engines.host_files import forget_shared_memory, remove_abandoned
from lemix_hpc.launch.log_stream import keep_on_writing
from lemix_hpc.launch.rank_signals import end_at_once, hand_to, leave_to_scheduler, note
from lemix_hpc.launch.rundir import RunDir
from lemix_hpc.launch.slurm_job import job_id
from lemix_hpc.records.attempts import Attempt, AttemptEnd, claim
from lemix_hpc.records.files import patiently
from lemix_hpc.records.settings import read_settings

if TYPE_CHECKING:
    from mpi4py import MPI

    from lemix_hpc.config.recipe import Recipe

SCHEDULER_RANK = 0
REPORT_TIMEOUT_S = 600.0
"""How long the end waits for a disk that does not take the report."""
EXIT_EARLY = 75
"""Of the scheduler's rank, if the run is to end before it has begun."""
GAVE_UP = signal.SIGALRM
"""Ends a rank that has failed, and whose MPI cannot end the others, since what starts them does not answer."""
ABORT_TIMEOUT_S = 10


def run_rank(run_dir: str, number: int | None = None) -> None:
    """Run this rank's part of an attempt at the run in `run_dir`; collective over MPI.COMM_WORLD. `number`: of the attempt,
    which the caller has claimed; without one it is a new attempt.

    An exception ends all ranks: it is written to the rank's log, in a line of the attempt's failure.txt and on the job's
    stderr, and the MPI world is aborted, since other ranks may wait for this one for ever.
    """
    from mpi4py import MPI

    run, world = RunDir(Path(run_dir)), MPI.COMM_WORLD
    rank = world.Get_rank()
    # Before all else: until here a signal ends the rank.
    noted: list[int] = []
    if rank == SCHEDULER_RANK:
        noted = note()
    else:
        leave_to_scheduler()
    job_stderr, attempt, role = os.dup(2), None, "role not known yet"
    try:
        host = world.Split_type(MPI.COMM_TYPE_SHARED)
        forget_shared_memory(host)
        if host.Get_rank() == 0:
            remove_abandoned()
        attempt = _attempt(run, number, world)
        _redirect_output(run.rank_log(attempt.number, rank))
        _set_environment(host)
        host.Free()
        recipe = _load(run)
        role = _role(recipe, world)
        if run.profile_order.exists():
            end_at_once()
            _profile(recipe, run)
            if rank == SCHEDULER_RANK:
                attempt.end(AttemptEnd("finished", "all is measured", time.time()))
        else:
            _run(recipe, run, attempt, rank, noted)
    except BaseException as error:  # noqa: BLE001  whatever it is, the other ranks must not wait for this one
        traceback.print_exc()
        _tell(run, attempt, rank, role, error, job_stderr)
        # By the kernel, since MPI lets no Python run meanwhile.
        signal.signal(GAVE_UP, signal.SIG_DFL)
        signal.alarm(ABORT_TIMEOUT_S)
        world.Abort(1)


def _attempt(run: RunDir, number: int | None, world: MPI.Comm) -> Attempt:
    if number is not None:
        return run.attempt(number)
    return run.attempt(world.bcast(claim(run.path).number if world.Get_rank() == SCHEDULER_RANK else None))


def _run(recipe: Recipe, run: RunDir, attempt: Attempt, rank: int, noted: list[int]) -> None:
    from lemix_hpc.runtime.main import run as run_distributed

    if rank != SCHEDULER_RANK:
        run_distributed(recipe, attempt, None)
        return
    from lemix_hpc.report.build import build_report
    from lemix_hpc.runtime.scheduler.allocation import watch
    from lemix_hpc.runtime.scheduler.drain import Drain, EndedEarlyError

    drain = Drain(run.stop, recipe.policy.drain_reserve_s, watch())
    hand_to(drain.heard, noted)
    try:
        end = run_distributed(recipe, attempt, drain)
        assert end is not None, "the scheduler rank knows why"
        patiently(lambda: build_report(run.path), REPORT_TIMEOUT_S, lambda: drain.hopeless)
        patiently(lambda: attempt.end(end), REPORT_TIMEOUT_S, lambda: drain.hopeless)
        if drain.hopeless:
            # The others may be dead, and MPI would wait for them.
            _leave(0)
    except EndedEarlyError as early:
        print(f"ended before it began: {early}", flush=True)
        attempt.end(AttemptEnd(early.ending.reason, early.ending.message, time.time()))
        # The others are building their engines and hear nothing; mpiexec and srun end them when this rank ends so.
        _leave(EXIT_EARLY)
    finally:
        drain.close()


def _leave(code: int) -> NoReturn:
    """Without a word to the other ranks."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _redirect_output(log: Path) -> None:
    """Send stdout and stderr to the rank's log, also those of C libraries."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    keep_on_writing()


def _set_environment(host: MPI.Comm) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    if job_id() is not None:
        keep_on_host(os.environ)
    ranks, cores = host.Get_size(), len(os.sched_getaffinity(0))
    # A rank bound to its own cores by Slurm sees only those; an unbound one sees, and shares, all cores of the host.
    bound = cores <= int(os.environ.get("SLURM_CPUS_PER_TASK", "0"))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores if bound else cores // ranks)))


def _load(run: RunDir) -> Recipe:
    from lemix_hpc.config.load import load_recipe

    return load_recipe(run.recipe, read_settings(run.path))


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
