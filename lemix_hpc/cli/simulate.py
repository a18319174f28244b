"""`lemix simulate`: a recipe in simulated time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lemix_hpc.cli.run import Json, Out, Overrides, RecipePath

if TYPE_CHECKING:
    from lemix_hpc.config.recipe import Recipe

Split = Annotated[
    str | None,
    typer.Option(
        metavar="NODES",
        help="For placement separate: how many nodes train. `auto` takes the number that meets the most limits.",
        show_default=False,
    ),
]


def simulate(
    recipe: RecipePath,
    overrides: Overrides = None,
    split: Split = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Run a recipe in simulated time, without MPI or Slurm, and print its report."""
    chosen = [] if split is None else [f"policy.training_nodes={split}"]
    ready = simulated_recipe(recipe, [*(overrides or []), *chosen])
    from rich.console import Console

    from lemix_hpc.cli.show import render_report
    from lemix_hpc.studies.run_directory import simulate_into

    run, simulated = simulate_into(ready, out)
    for notice in simulated.notices:
        typer.echo(notice, err=True)
    typer.echo(f"{run.id}: {run.path}", err=True)
    if as_json:
        typer.echo(json.dumps(simulated.summary))
        return
    Console().print(render_report(run, simulated.summary), crop=False)
    if ready.policy.training_nodes == "auto":
        nodes = ready.nodes.count
        typer.echo(f"Best split: {simulated.recipe.policy.training_nodes} of {nodes} nodes train.")


def simulated_recipe(path: Path, overrides: list[str]) -> Recipe:
    """A recipe that can be simulated, with every mistake in it told."""
    from lemix_hpc.config.load import read_recipe
    from lemix_hpc.launch.preflight import preflight_simulation

    loaded = read_recipe(path, overrides)
    preflight_simulation(loaded)
    return loaded.recipe
