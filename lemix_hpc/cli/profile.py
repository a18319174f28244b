"""`lemix profile`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lemix_hpc.cli.run import Cluster, Json, Overrides, RecipePath

if TYPE_CHECKING:
    from lemix_hpc.config.recipe import Recipe
    from lemix_hpc.launch.start import ClusterKind, StartedRun

Sweep = Annotated[
    list[str] | None,
    typer.Option(
        "--array",
        metavar="KEY=V1,V2,...",
        help="Profile once for each value of a key, as a Slurm job array. Repeated: once for each combination.",
    ),
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Directory for the results and for the points measured so far.")]


def profile(
    recipe: RecipePath,
    overrides: Overrides = None,
    array: Sweep = None,
    cluster: Cluster = None,
    out: Out = Path("profiling"),
    as_json: Json = False,
) -> None:
    """Measure the recipe's model on these devices and write a coefficient file. Run the same command again to continue an
    interrupted job. Exit code 1 if it fails."""
    sweep = [_prepare(recipe, [*(overrides or []), *values], cluster) for values in _combinations(array or [])]
    from lemix_hpc.cli.follow import EXIT_INTERRUPTED, follow
    from lemix_hpc.launch.profile import start_profile, submit_sweep

    kind = sweep[0][1]
    recipes = [ready for ready, _ in sweep]
    if kind == "slurm" and len(recipes) > 1:
        starts: list[Callable[[], StartedRun]] = [partial(_same, started) for started in submit_sweep(recipes, out)]
    else:
        starts = [partial(start_profile, ready, kind, out) for ready in recipes]
    code = 0
    for start in starts:
        code = max(code, follow(start, as_json=as_json))
        if code == EXIT_INTERRUPTED and kind != "slurm":
            break  # what has not begun need not begin
    raise typer.Exit(code)


def _same(started: StartedRun) -> StartedRun:
    return started


def _combinations(sweeps: list[str]) -> list[list[str]]:
    """The overrides of each job; one job without any if there is no sweep."""
    choices = []
    for sweep in sweeps:
        key, equals, values = sweep.partition("=")
        if not equals or not key or not all(values.split(",")):
            from lemix_hpc.config.errors import UserError

            raise UserError(f"--array {sweep}: write it as section.key=value,value, such as nodes.stages=1,2")
        choices.append([f"{key}={value}" for value in values.split(",")])
    return [list(values) for values in itertools.product(*choices)]


def _prepare(path: Path, overrides: list[str], cluster: str | None) -> tuple[Recipe, ClusterKind]:
    from lemix_hpc.config.load import read_recipe
    from lemix_hpc.launch.preflight import preflight_profile
    from lemix_hpc.launch.profile import for_one_node
    from lemix_hpc.launch.start import choose_cluster

    loaded = for_one_node(read_recipe(path, overrides))
    kind = choose_cluster(cluster or loaded.recipe.cluster.kind)
    preflight_profile(loaded, kind)
    return loaded.recipe, kind
