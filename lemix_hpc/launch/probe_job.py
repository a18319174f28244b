"""A job that starts a run's ranks as a run would, to find out about the place they get: see `lemix_hpc.probe`."""

from __future__ import annotations

import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import load_recipe, resolved_yaml
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.launch.deaths import first_death
from lemix_hpc.launch.job_queue import look_up
from lemix_hpc.launch.job_states import job_states
from lemix_hpc.launch.launcher import rank_command
from lemix_hpc.launch.launchers import make_launcher
from lemix_hpc.launch.place import cannot_be_made, runs_root
from lemix_hpc.launch.scratch import scratch
from lemix_hpc.launch.start import ClusterKind
from lemix_hpc.launch.states import FINAL
from lemix_hpc.probe.findings import DONE, FINDINGS, Findings

TIME_LIMIT = "00:05:00"
"""Most of it is for loading torch from a slow file system for the first time."""
LIMIT_S = 300
LOOK_EVERY_S = 2.0
PATIENCE_S = 10.0
"""How long what a job has written may take to be seen here, once it has ended."""
LAST_LINES = 5
_BANNER = re.compile(r"^-{20,}$", re.MULTILINE)
"""Above and below what Open MPI's mpiexec has to say."""


@dataclass(frozen=True)
class Probed:
    """What the ranks found, None if they did not come to that; and the last that they or their launcher said, if they did not
    come to the end."""

    findings: Findings | None
    said: str = ""


def probe(recipe: Recipe, cluster: ClusterKind, say: Callable[[str], None]) -> Probed:
    """Start the ranks and wait for what they find. `say` hears what is waited for.

    Raises UserError if they cannot be started from here. When interrupted it takes the job back.
    """
    limited = recipe.cluster.model_copy(update={"time": TIME_LIMIT, "requeue": False})
    short = recipe.model_copy(update={"name": "doctor", "cluster": limited})
    with _directory(short) as directory:
        if cluster == "slurm":
            _in_job(short, directory, say)
        else:
            _here(short, cluster, directory)
        return _probed(directory)


def batch_step(directory: str) -> None:
    """What the job does in its batch step. Raises SystemExit with srun's exit status."""
    recipe = load_recipe(Path(directory) / "recipe.yaml")
    launcher = make_launcher(recipe, "allocation", _rank_command(Path(directory)))
    sys.exit(subprocess.run(launcher.command, env=launcher.environment, check=False).returncode)


def _rank_command(directory: Path) -> list[str]:
    return rank_command(directory, "lemix_hpc.probe")


@contextmanager
def _directory(recipe: Recipe) -> Iterator[Path]:
    """Beside those of runs, so that what holds for it holds for them; it is gone afterwards."""
    path = runs_root().absolute() / f".doctor-{secrets.token_hex(4)}"
    try:
        (path / "submitit").mkdir(parents=True)
        path.chmod(0o700)
        (path / "recipe.yaml").write_text(resolved_yaml(recipe), encoding="utf-8")
    except OSError as error:
        raise UserError(cannot_be_made(path, error)) from error
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _here(recipe: Recipe, cluster: Literal["local", "allocation"], directory: Path) -> None:
    launcher = make_launcher(recipe, cluster, _rank_command(directory))
    with scratch() as variables, (directory / "here.out").open("wb") as log:
        ranks = subprocess.Popen(
            launcher.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=launcher.environment | variables
        )
        try:
            ranks.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            log.write(f"not done within {LIMIT_S} s\n".encode())
        finally:
            ranks.terminate()
            ranks.wait()


def _in_job(recipe: Recipe, directory: Path, say: Callable[[str], None]) -> None:
    from lemix_hpc.launch import slurm

    job = slurm.submit_other(recipe, batch_step, directory)
    try:
        _wait_for(job, say)
    except BaseException:
        subprocess.run(["scancel", job], capture_output=True, check=False)
        raise
    end = time.monotonic() + PATIENCE_S
    while _read(directory) is None and time.monotonic() < end:
        time.sleep(LOOK_EVERY_S / 4)


def _wait_for(job: str, say: Callable[[str], None]) -> None:
    told = ""
    while (state := job_states([job]).get(job, "")) not in FINAL:
        queued = look_up(job) if state == "PENDING" else None
        why = f": {queued.reason}" if queued is not None and queued.reason not in (None, "None") else ""
        if state and (now := f"job {job} is {state}{why}") != told:
            told = now
            say(now)
        time.sleep(LOOK_EVERY_S)


def _probed(directory: Path) -> Probed:
    findings = _read(directory)
    if findings is not None and findings.phase == DONE:
        return Probed(findings)
    logs = sorted([*directory.glob("*.out"), *(directory / "submitit").glob("*_log.*")])
    return Probed(findings, last_words("\n".join(log.read_text(encoding="utf-8", errors="replace") for log in logs)))


def last_words(printed: str) -> str:
    """Of what the ranks and their launcher printed: which rank died, and what was said before the launcher's notice of that."""
    lines = [line.strip() for line in _BANNER.split(printed)[0].splitlines() if line.strip()][-LAST_LINES:]
    death = first_death(printed)
    return "; ".join([*([str(death)] if death is not None else []), *lines])


def _read(directory: Path) -> Findings | None:
    try:
        return msgspec.json.decode((directory / FINDINGS).read_bytes(), type=Findings)
    except FileNotFoundError:
        return None
