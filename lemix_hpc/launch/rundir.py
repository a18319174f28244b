"""The directory of a run: what was asked for, how it was started, its logs, and later its records and report."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.text_file import BROKEN_JSON, read_bytes
from lemix_hpc.launch.place import cannot_be_made, new_place
from lemix_hpc.records.attempts import ATTEMPTS, Attempt, attempts
from lemix_hpc.records.files import replace
from lemix_hpc.records.made_by import RECORD, made_by
from lemix_hpc.records.schema import FACTS

if TYPE_CHECKING:
    from lemix_hpc.config.recipe import Recipe

LATEST_S = 1e11
"""No clock is later, in seconds since the epoch."""


class RunRecord(msgspec.Struct, frozen=True):
    """How a run was started (`run.json`).

    `job` is the Slurm job id, also of the allocation that a run was started in. `pid` and `pid_started` (clock ticks since
    boot, as in /proc/PID/stat) name the supervisor of a run that was started from here; a process with the pid but another
    start time is a stranger. `renew`: each job submits one that goes on with the run after it; `first_attempt`: that this
    start makes, after those of others. A simulated run has none of these, and no ranks. `created` is in seconds since the
    epoch.
    """

    id: str
    cluster: Literal["local", "slurm", "allocation", "simulated"]
    created: Annotated[float, msgspec.Meta(ge=0, le=LATEST_S)]
    command: list[str]
    host: str
    user: str
    version: str
    world_size: int
    job: str | None = None
    renew: bool = False
    first_attempt: int = 0
    pid: int | None = None
    pid_started: int | None = None


@dataclass(frozen=True, slots=True)
class RunDir:
    """Where everything of one run lies."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def record(self) -> Path:
        return self.path / RECORD

    @property
    def job_script(self) -> Path:
        return self.path / "job.sbatch"

    @property
    def submitit(self) -> Path:
        return self.path / "submitit"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def supervisor_log(self) -> Path:
        """What the supervisor of a run that was started from here wrote: how each attempt ended. Under Slurm the job's output
        has that."""
        return self.logs / "supervisor.log"

    @property
    def failure(self) -> Path:
        """There if ranks of the current attempt failed: a line for each of them."""
        return self.path / "failure.txt"

    def attempt(self, number: int) -> Attempt:
        """That has been claimed."""
        return Attempt(self.path / ATTEMPTS / str(number))

    @property
    def last_attempt(self) -> Attempt | None:
        """None before the first."""
        found = attempts(self.path)
        return found[-1] if found else None

    @property
    def results(self) -> Path:
        """There if the run answers the lines of a batch."""
        return self.path / "results.jsonl"

    @property
    def stop(self) -> Path:
        """There if the user asked the run to stop."""
        return self.path / "stop"

    @property
    def successor(self) -> Path:
        """There if a job waits that goes on with the run after this one; its id."""
        return self.path / "successor"

    @property
    def cancelled(self) -> Path:
        """There if the user cancelled the run."""
        return self.path / "cancelled"

    @property
    def progress(self) -> Path:
        return self.path / "progress.json"

    @property
    def facts(self) -> Path:
        """There once a run has served or trained."""
        return self.path / FACTS

    @property
    def profile_order(self) -> Path:
        """There if this is a profiling job."""
        return self.path / "profile.json"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    def launcher_log(self, attempt: int) -> Path:
        """What mpiexec or srun wrote in an attempt, and ranks before they had a log of their own."""
        return self.logs / f"attempt-{attempt}" / "launcher.log"

    def rank_log(self, attempt: int, rank: int) -> Path:
        return self.logs / f"attempt-{attempt}" / f"rank-{rank}.log"

    def read_record(self) -> RunRecord:
        """Raises UserError if this is no run directory."""
        try:
            return msgspec.json.decode(read_bytes(self.record), type=RunRecord)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{self.path}: not a run directory: it has no run.json") from None
        except OSError as error:
            raise UserError(f"{self.record}: cannot be read: {error.strerror}") from None
        except BROKEN_JSON as error:
            raise UserError(
                f"{self.record}: not a record that this version can read: {error}{made_by(self.record)}"
            ) from None

    def write_record(self, record: RunRecord) -> None:
        replace(self.record, msgspec.json.format(msgspec.json.encode(record), indent=2))


def create_run_dir(recipe: Recipe, out: Path | None, *, for_slurm: bool = False) -> RunDir:
    """Make the directory of a new run and write its recipe there. `out` must be empty or absent.

    Raises UserError if `out` has content, or the directory cannot be made or has a name that others cannot use.
    """
    # All models of a recipe take longer to import than `lemix ps` takes besides.
    from lemix_hpc.config.load import resolved_yaml
    from lemix_hpc.records.key_file import keep_key

    path = new_place(recipe.name, out, for_slurm=for_slurm)
    there = path.exists()
    run = RunDir(path)
    try:
        run.logs.mkdir(parents=True, exist_ok=out is not None)
        # What clients ask and are told is in there, and the key that lets them in.
        path.chmod(0o700)
        if recipe.serving is not None and (http := recipe.serving.http) is not None and http.api_key_file is None:
            keep_key(path, http.api_key)
        run.recipe.write_text(resolved_yaml(recipe), encoding="utf-8")
    except (OSError, UserError) as error:
        # An empty directory that was there may be given again.
        shutil.rmtree(path, ignore_errors=True)
        if there:
            path.mkdir(exist_ok=True)
        if isinstance(error, UserError):
            raise
        raise UserError(cannot_be_made(path, error)) from error
    return run
