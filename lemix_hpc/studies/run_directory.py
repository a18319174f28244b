"""A simulated run on the disk: the directory that a run has, and its place in the user's list."""

from __future__ import annotations

import getpass
import shutil
import socket
import sys
import time
from pathlib import Path

import msgspec

from lemix_hpc import __version__
from lemix_hpc.config.load import resolved_yaml
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.launch.registry import register
from lemix_hpc.launch.rundir import RunDir, RunRecord, create_run_dir
from lemix_hpc.records.files import replace
from lemix_hpc.records.schema import Progress
from lemix_hpc.studies.simulated_run import Simulated, simulate


def simulate_into(recipe: Recipe, out: Path | None) -> tuple[RunDir, Simulated]:
    """Simulate a recipe and leave the files of a run, by default below ./runs. Raises UserError as `simulate` does."""
    created = time.time()
    run = create_run_dir(recipe, out)
    try:
        simulated = simulate(recipe, events=True)
        # With the split that was found, so that it can be run.
        run.recipe.write_text(resolved_yaml(simulated.recipe), encoding="utf-8")
        simulated.write(run.path)
    except BaseException:
        # Nothing was run, so there is no run.
        shutil.rmtree(run.path)
        raise
    replace(run.progress, msgspec.json.encode(_progress(simulated)))
    run.write_record(_record(run, created))
    register(run)
    return run, simulated


def _progress(simulated: Simulated) -> Progress:
    records = simulated.records
    served = sum(task.outcome == "finished" for task in records.served)
    return Progress(
        "finished",
        elapsed_s=records.facts.duration_s,
        received=len(records.served),
        requests=len(records.served),
        served=served,
        trained=len(records.trained),
        steps=records.facts.steps,
    )


def _record(run: RunDir, created: float) -> RunRecord:
    return RunRecord(
        id=run.id,
        cluster="simulated",
        created=created,
        command=sys.argv,
        host=socket.gethostname(),
        user=getpass.getuser(),
        version=__version__,
        world_size=0,
    )
