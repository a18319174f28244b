"""What a run needs of this machine and its Slurm, each tried for real."""

from __future__ import annotations

import importlib.metadata
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from lemix_hpc.config.cluster_section import Cluster
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import read_recipe
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.launch import device_checks
from lemix_hpc.launch.check import Check
from lemix_hpc.launch.local import environment, mpiexec_command
from lemix_hpc.launch.place import runs_root
from lemix_hpc.launch.preflight import preflight
from lemix_hpc.launch.probe_checks import probe_checks
from lemix_hpc.launch.probe_job import probe
from lemix_hpc.launch.start import choose_cluster, slurm_answers
from lemix_hpc.launch.survival_checks import parse_config, parse_partition, survival_checks
from lemix_hpc.launch.visibility import prove

OLDEST_PYTHON = (3, 11)
TIMEOUT_S = 60
_NO_FILE, _NO_PYTHON = 41, 42
_TWO_RANKS = (
    "from mpi4py import MPI; print('ranks', MPI.COMM_WORLD.allreduce(1), MPI.Get_library_version().split(',')[0])"
)


def checks(
    recipe_path: Path | None, overrides: Sequence[str] = (), in_job: Callable[[str], None] | None = None
) -> Iterator[Check]:
    """All checks, each as it is done; with a recipe also what that needs. `in_job`: also start its ranks as a run would, and
    let this hear what they wait for.

    Raises UserError if those cannot be started from here.
    """
    slurm = slurm_answers()
    yield _python()
    yield from _packages()
    yield _mpi(needed=not slurm)
    yield device_checks.here(_call)
    yield _run_directory()
    yield compiled()
    recipe = None
    if recipe_path is not None:
        check, recipe = _recipe(recipe_path, overrides)
        yield check
    cluster = Cluster() if recipe is None else recipe.cluster
    yield from _slurm_checks(cluster) if slurm else _no_slurm()
    if in_job is None:
        yield from device_checks.in_job(cluster, _where(cluster), _call) if slurm else ()
    elif recipe is not None:
        yield from probe_checks(probe(recipe, choose_cluster(cluster.kind), in_job), recipe)


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= OLDEST_PYTHON:
        return Check("python", "ok", version)
    return Check("python", "fail", f"{version} is too old; make an environment with Python 3.11 or newer")


def _packages() -> Iterator[Check]:
    """The packages that this version pins, against those installed."""
    wrong = []
    for requirement in importlib.metadata.requires("lemix-hpc") or []:
        match = re.fullmatch(r"([\w.-]+)==([^\s;]+)", requirement)
        if match is not None:
            name, pinned = match.groups()
            try:
                installed = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                yield Check("packages", "fail", f"{name} {pinned} is not installed; run `pip install lemix-hpc` again")
                return
            if installed.partition("+")[0] != pinned:
                wrong.append(f"{name} {installed} instead of {pinned}")
    if wrong:
        yield Check("packages", "warn", f"{', '.join(wrong)}; other versions than the pinned ones are not tested")
    else:
        yield Check("packages", "ok", "all pinned versions")


def _mpi(*, needed: bool) -> Check:
    """Really start two ranks. Where Slurm starts the ranks mpiexec is only for local runs."""
    bad: Literal["fail", "warn"] = "fail" if needed else "warn"
    try:
        command = mpiexec_command(2, [sys.executable, "-m", "mpi4py", "-c", _TWO_RANKS])
        done = _call(command, environment())
    except UserError as error:
        return Check("mpi", bad, str(error))
    except subprocess.TimeoutExpired:
        return Check(
            "mpi", bad, f"two ranks did not start within {TIMEOUT_S} s; check the network interfaces that MPI uses"
        )
    match = re.search(r"ranks (\d) (.*)", done.stdout)
    if done.returncode or match is None:
        return Check("mpi", bad, f"{command[0]} could not start two ranks: {_last_line(done.stderr)}")
    if match[1] != "2":
        return Check(
            "mpi", bad, f"mpi4py uses another MPI ({match[2]}) than {command[0]}; put the mpiexec of the same MPI first"
        )
    return Check("mpi", "ok", f"two ranks started with {match[2]}")


def _run_directory() -> Check:
    root = runs_root().absolute()
    probe = root / f".doctor-{secrets.token_hex(4)}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        return Check("run directory", "fail", f"{root}: {error.strerror}; set LEMIX_RUNS to a writable directory")
    return Check("run directory", "ok", f"{root} is writable")


def compiled() -> Check:
    """Fill the cache, so that the first simulation and the first run on this kind of processor need not."""
    from lemix_hpc.policy.scheduler import compile_policy
    from lemix_hpc.simulator.compiling import compile_simulator

    start = time.monotonic()
    compile_policy()
    compile_simulator()
    return Check(
        "policy", "ok", f"compiled for this kind of processor, or found so, in {time.monotonic() - start:.0f} s"
    )


def _recipe(path: Path, overrides: Sequence[str]) -> tuple[Check, Recipe | None]:
    try:
        loaded = read_recipe(path, overrides)
        notices = preflight(loaded, choose_cluster(loaded.recipe.cluster.kind))
    except UserError as error:
        return Check("recipe", "fail", str(error)), None
    if warnings := [notice for notice in notices if notice.startswith("warning: ")]:
        return Check("recipe", "warn", warnings[0].removeprefix("warning: ")), loaded.recipe
    return Check("recipe", "ok", f"{path} has no mistakes"), loaded.recipe


def _no_slurm() -> Iterator[Check]:
    if shutil.which("sbatch") is None:
        yield Check("slurm", "ok", "not installed; runs start on this machine")
    else:
        yield Check("slurm", "warn", "sbatch is installed but the controller does not answer; ask `scontrol ping`")


def _slurm_checks(cluster: Cluster) -> Iterator[Check]:
    yield Check("slurm", "ok", _last_line(_call(["sinfo", "--version"]).stdout))
    offered = _call(["srun", "--mpi=list"])
    if cluster.mpi in re.findall(r"\w+", offered.stdout + offered.stderr):
        yield Check("srun --mpi", "ok", f"{cluster.mpi} is offered")
    else:
        names = " ".join((offered.stdout + offered.stderr).split())
        yield Check(
            "srun --mpi", "fail", f"no {cluster.mpi} ({names}); set cluster.mpi to one that your MPI was built for"
        )
    try:
        sacct = _call(["sacct", "--noheader", "-X", "--format", "JobID"])
        works = sacct.returncode == 0
    except FileNotFoundError:
        works = False
    if works:
        yield Check("sacct", "ok", "accounting works")
    else:
        yield Check("sacct", "warn", "no accounting; states of ended jobs come from scontrol and the run directory")
    config = parse_config(_call(["scontrol", "show", "config"]).stdout)
    partition = parse_partition(_call(["scontrol", "--oneliner", "show", "partition"]).stdout, cluster.partition)
    yield from survival_checks(config, partition, requeue=cluster.requeue)
    yield _shared(cluster)


def _where(cluster: Cluster) -> list[str]:
    """The options of srun that say where a job goes."""
    options = {"partition": cluster.partition, "account": cluster.account, "qos": cluster.qos}
    return [f"--{key}={value}" for key, value in options.items() if value is not None]


def _shared(cluster: Cluster) -> Check:
    """A file written here, and this Python, must be seen by a job."""
    name = "shared directory"
    probe = runs_root().absolute() / f".doctor-{secrets.token_hex(4)}"
    try:
        probe.touch()
        look = [
            "sh",
            "-c",
            f'test -e "$0" || exit {_NO_FILE}; test -x "$1" || exit {_NO_PYTHON}',
            str(probe),
            sys.executable,
        ]
        done = _call(["srun", "--ntasks=1", "--time=1", "--immediate=30", *_where(cluster), *look])
    except subprocess.TimeoutExpired:
        return Check(
            name,
            "warn",
            f"no job started within {TIMEOUT_S} s, so it is not known; try again when the cluster is less busy",
        )
    except OSError as error:
        return Check(name, "fail", f"{probe.parent}: {error.strerror}; set LEMIX_RUNS to a writable directory")
    finally:
        probe.unlink(missing_ok=True)
    if done.returncode == 0:
        prove(probe.parent)
        return Check(name, "ok", f"jobs see {probe.parent} and {sys.executable}")
    if done.returncode == _NO_PYTHON:
        prove(probe.parent)
        text = (
            f"jobs see {probe.parent}, but not {sys.executable}; install lemix-hpc in a directory that all hosts share"
        )
        return Check(name, "fail", text)
    if done.returncode != _NO_FILE:
        return Check(name, "warn", f"no job started, so it is not known: {_last_line(done.stderr)}")
    return Check(name, "fail", f"jobs do not see {probe.parent}; set LEMIX_RUNS to a directory that all hosts share")


def _call(command: list[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=env)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"
