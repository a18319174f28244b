"""The user's list of runs, so that `lemix ps` finds those that were started from other directories."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from lemix_hpc.config.errors import UserError
from lemix_hpc.launch.place import absolute, recipe_name, runs_root
from lemix_hpc.launch.rundir import RunDir
from lemix_hpc.launch.states import next_job
from lemix_hpc.records.files import PASSING

LAST = "last"
"""The newest run."""
JOB = re.compile(r"\d+(_\d+)?")
_THERE = PASSING | {errno.EACCES, errno.EPERM}


def registry_dir() -> Path:
    """One small file per run, in which its directory is written."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "lemix" / "runs"


def register(run: RunDir) -> None:
    """Add a run. Raises UserError if the user's state directory cannot be written."""
    directory = registry_dir()
    # Two runs given with --out may have the same directory name.
    entry = directory / f"{run.id}-{hashlib.sha256(bytes(run.path)).hexdigest()[:8]}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        entry.write_text(f"{run.path}\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{directory}: the list of runs cannot be written: {error.strerror}; set XDG_STATE_HOME to a writable directory"
        ) from error


def known_runs() -> list[RunDir]:
    """Every run that still exists, oldest first. Entries of deleted runs are skipped, and removed."""
    # A link may lead to one, too.
    runs = {os.path.realpath(run.path): run for run in [*_below(runs_root()), *_registered()]}
    return sorted(runs.values(), key=_created)


def _created(run: RunDir) -> float:
    """When, in seconds since the epoch: one broken record must not hide the other runs."""
    try:
        return run.read_record().created
    except UserError:
        return made_at(run)


def made_at(run: RunDir) -> float:
    """When its directory was last changed, in seconds since the epoch, as far as it can be seen."""
    try:
        return run.path.stat().st_mtime
    except OSError:
        return 0.0


def find_run(name: str) -> RunDir:
    """The run in this directory or with this id; `last`: the newest; the one of this Slurm job; the newest of this recipe name;
    or the one whose id starts so.

    Raises UserError for none and for several.
    """
    why = "there is no run directory of this name"
    try:
        as_path = RunDir(Path(name).expanduser().absolute())
        if as_path.record.exists():
            return as_path
    except OSError as error:
        why = f"what is called so cannot be looked at: {error.strerror}"
    except (ValueError, RuntimeError):
        pass  # no path can be called so
    matches = _matching(known_runs(), name)
    if len(matches) == 1:
        return matches[0]
    if not matches:
        raise UserError(f"{name}: no run has this id and {why}; `lemix ps --all` lists all runs")
    raise UserError(f"{name}: several runs match; give one of:\n" + "\n".join(f"  {run.path}" for run in matches))


def _matching(runs: list[RunDir], name: str) -> list[RunDir]:
    """Of runs, oldest first, those that a name can mean."""
    if exact := [run for run in runs if run.id == name]:
        return exact
    if name == LAST:
        return runs[-1:]
    if JOB.fullmatch(name) and (of_job := [run for run in runs if name in _jobs(run)]):
        return of_job[-1:]
    if of_recipe := [run for run in runs if recipe_name(run.id) == name]:
        return of_recipe[-1:]
    return [run for run in runs if run.id.startswith(name)]


def _jobs(run: RunDir) -> set[str | None]:
    """Where it is, and where it goes on."""
    try:
        return {run.read_record().job, next_job(run)}
    except UserError:
        return set()


def _registered() -> Iterator[RunDir]:
    try:
        entries = sorted(registry_dir().iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        print(f"{registry_dir()}: {error.strerror}; runs that are listed there are not shown", file=sys.stderr)
        return
    for entry in entries:
        run = None
        try:
            run = RunDir(Path(entry.read_text(encoding="utf-8").strip()))
            there = run.record.exists()
            # Where the parent is missing, too, it may be on a file system of another host.
            gone = not there and run.path.parent.exists() and not run.path.exists()
        except ValueError:
            continue  # damaged
        except OSError as error:
            if run is not None and error.errno in _THERE:
                yield run  # but its file system does not answer, or does not let us in
            continue
        if there:
            yield run
        elif gone:
            entry.unlink(missing_ok=True)


def _below(root: Path) -> Iterator[RunDir]:
    try:
        yield from [RunDir(record.parent) for record in absolute(root).glob("*/run.json")]
    except OSError as error:
        print(f"{root}: {error.strerror}; runs there are not shown", file=sys.stderr)
