"""Start profiling jobs. A job's directory is named after what it measures, so that the same command goes on with it."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import LoadedRecipe, resolved_yaml
from lemix_hpc.config.policy_section import Policy
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.launch.rundir import RunDir
from lemix_hpc.launch.start import ClusterKind, StartedRun, note, start_in, submitted
from lemix_hpc.launch.states import FINAL, run_state
from lemix_hpc.measure.main import ProfileOrder


def for_one_node(loaded: LoadedRecipe) -> LoadedRecipe:
    """What is profiled of a recipe: one node. Stages that compute need no coefficients; they are about to be made."""
    recipe = loaded.recipe
    gpus, per_host = recipe.cluster.gpus_per_node, recipe.cluster.nodes_per_host
    changes: dict[str, Any] = {
        "nodes": recipe.nodes.model_copy(update={"count": 1, "kinds": None}),
        "cluster": recipe.cluster.model_copy(update={"nodes_per_host": 1, "gpus_per_node": gpus and gpus // per_host}),
        "policy": Policy(),
    }
    if recipe.engine.computes:
        changes["engine"] = recipe.engine.model_copy(update={"coefficients": None})
    return LoadedRecipe(recipe.model_copy(update=changes), loaded.source, loaded.places)


def fingerprint(recipe: Recipe) -> str:
    """Of everything that the measured times depend on; points of equal fingerprints may be mixed."""
    training = recipe.training
    parts = {
        "model": recipe.model.model_dump(mode="json"),
        "engine": recipe.engine.model_dump(mode="json", exclude={"max_batch_requests", "max_batch_tokens"}),
        "stages": recipe.nodes.stages,
        "cores": recipe.cores,
        "mode": recipe.serving.mode if recipe.serving else None,
        "release": training.release if training else None,
        "repeats": (recipe.profile.warm_up, recipe.profile.repeats, recipe.profile.pause_s),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


def start_profile(recipe: Recipe, cluster: ClusterKind, out: Path) -> StartedRun:
    """Start or submit a job, or go on with the one that measured the same before."""
    started = start_in(recipe, cluster, open_job(recipe, out))
    note(started)
    return started


def submit_sweep(recipes: Sequence[Recipe], out: Path) -> list[StartedRun]:
    """Submit a job for each recipe; those that ask Slurm for the same make one job array.

    Raises UserError if two of them measure the same.
    """
    from lemix_hpc.launch import slurm

    if len({(recipe.name, fingerprint(recipe)) for recipe in recipes}) < len(recipes):
        raise UserError("--array: some of the values do not change what is measured; leave them out")
    started: list[StartedRun] = []
    for group in _groups(recipes):
        runs = [open_job(recipe, out) for recipe in group]
        folder = runs[0].path.with_name(f"array-{runs[0].id}") / "submitit"
        folder.mkdir(parents=True, exist_ok=True)
        for run in runs:
            _link(run.submitit, folder)
        jobs = slurm.submit_array(group[0], runs, folder)
        for recipe, run, job in zip(group, runs, jobs, strict=True):
            started.append(submitted(recipe, run, job))
            note(started[-1])
    return started


def _link(path: Path, folder: Path) -> None:
    """Let a job's folder for submitit be that of its array, also where the job went alone before."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.symlink_to(folder)


def _groups(recipes: Sequence[Recipe]) -> Iterator[list[Recipe]]:
    from lemix_hpc.launch import slurm

    left = list(recipes)
    while left:
        group = [recipe for recipe in left if slurm.same_request(left[0], recipe)]
        left = [recipe for recipe in left if recipe not in group]
        yield group


def open_job(recipe: Recipe, out: Path) -> RunDir:
    """The job's directory OUT/jobs/NAME-FINGERPRINT, new or with the points measured so far.

    Raises UserError while a job is at work in it, or if it cannot be made.
    """
    run = RunDir((out / "jobs" / f"{recipe.name}-{fingerprint(recipe)}").absolute())
    if run.record.exists():
        state = run_state(run, run.read_record())
        if state not in FINAL and state != "UNKNOWN":
            raise UserError(
                f"{run.id} is {state} already; `lemix cancel {run.id}` ends it, and what it measured is kept"
            )
    order = ProfileOrder(str(out.absolute()), sys.argv)
    try:
        run.logs.mkdir(parents=True, exist_ok=True)
        for left_behind in (run.report, run.cancelled, run.stop, run.progress):
            left_behind.unlink(missing_ok=True)
        run.recipe.write_text(resolved_yaml(recipe), encoding="utf-8")
        run.profile_order.write_bytes(msgspec.json.encode(order))
    except OSError as error:
        raise UserError(f"{run.path}: the directory cannot be made: {error.strerror}; choose another --out") from error
    return run
