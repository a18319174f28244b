"""The runs of a study as runs of ranks, on emulated stages or on devices: one after the other here, as jobs under Slurm."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import resolved_yaml
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.launch.cancel import stop
from lemix_hpc.launch.run_report import report_of
from lemix_hpc.launch.rundir import RunDir
from lemix_hpc.launch.start import ClusterKind, start
from lemix_hpc.launch.states import FINAL, run_state
from lemix_hpc.records.reader import stream_run
from lemix_hpc.studies.sweep import Cell, Cells, Done, figures

LOOK_EVERY_S = 0.5
ASK_SLURM_EVERY_S = 5.0


def run_for_real(grid: Cells, cluster: ClusterKind, out: Path) -> Iterator[Done]:
    """All runs of a grid in the order of its cells, each in a directory of its own below `out`.

    Runs that are there already, of the same recipe, count: a study that was cut off goes on where it was. Under Slurm all jobs
    are submitted at once. Raises UserError for a run that did not complete, or is of another recipe; whatever ends the study
    asks the runs that go on to stop.
    """
    work = [(cell, grid.recipe_of(cell)) for cell in grid.cells()]
    places = [out / name_of(cell) for cell, _ in work]
    for (_, recipe), place in zip(work, places, strict=True):
        _check_what_is_there(place, recipe)
    if cluster == "slurm":
        for (_, recipe), place in zip(work, places, strict=True):
            _start(recipe, cluster, place)
    try:
        for (cell, recipe), place in zip(work, places, strict=True):
            yield _done(cell, recipe, _wait(_start(recipe, cluster, place)))
    except BaseException:
        for place in places:
            _stop(RunDir(place))
        raise


def name_of(cell: Cell) -> str:
    """Of the directory of a run: as long as the variants' names differ in letters and digits, no two have the same."""
    load = [] if cell.rate is None else [f"rate-{cell.rate:g}"]
    load += [] if cell.training_share is None else [f"share-{cell.training_share:g}"]
    variant = re.sub(r"[^A-Za-z0-9.]+", "-", cell.policy).strip("-")
    return "_".join([variant, *load, f"seed-{cell.seed}"])


def _check_what_is_there(place: Path, recipe: Recipe) -> None:
    run = RunDir(place)
    if not run.path.exists():
        return
    if not run.recipe.exists() or run.recipe.read_text(encoding="utf-8") != resolved_yaml(recipe):
        raise UserError(f"{place}: is there, and not of this study; give another directory with --out, or remove it")


def _start(recipe: Recipe, cluster: ClusterKind, place: Path) -> RunDir:
    """Unless it was started before."""
    return RunDir(place) if place.exists() else start(recipe, cluster, place).run


def _wait(run: RunDir) -> RunDir:
    """Until it has ended. Raises UserError unless it is complete."""
    record = run.read_record()
    every_s = ASK_SLURM_EVERY_S if record.cluster == "slurm" else LOOK_EVERY_S
    while (state := run_state(run, record)) not in FINAL:
        time.sleep(every_s)
    if state != "COMPLETED":
        raise UserError(
            f"{run.path} ended as {state}: `lemix watch {run.path}` says why; remove it, and the study runs it again"
        )
    return run


def _done(cell: Cell, recipe: Recipe, run: RunDir) -> Done:
    nodes, report = recipe.policy.training_nodes, report_of(run)
    broken = ""
    if report["training"]["stopped"]:
        steps = report["training"]["steps"]
        broken = (
            f"{run.path}: training stopped after {steps} steps, at a gradient that was not finite (training.on_nan)"
        )
    return Done(cell, nodes if isinstance(nodes, int) else None, figures(stream_run(run.path), report), broken)


def _stop(run: RunDir) -> None:
    if not run.path.exists():
        return
    record = run.read_record()
    if run_state(run, record) not in FINAL:
        stop(run, record)
