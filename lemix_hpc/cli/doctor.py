"""`lemix doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lemix_hpc.cli.run import Json, Overrides
from lemix_hpc.config.errors import UserError


def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="Also check what this recipe needs.")
    ] = None,
    in_job: Annotated[
        bool,
        typer.Option(
            "--in-job",
            help="Start the recipe's ranks for a minute or two where a run would have them, in a Slurm job if it goes there, "
            "and try devices, cores, messages and files from each of them.",
        ),
    ] = False,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Check that runs can start here. Exit code 1 if something is broken."""
    if recipe is None and (in_job or overrides):
        raise UserError(f"{'--in-job' if in_job else '--set'}: give a recipe, too: `lemix doctor RECIPE`")
    from lemix_hpc.launch.doctor import checks
    from lemix_hpc.launch.probe_checks import settings

    found = []
    for check in checks(recipe, overrides or (), _say if in_job else None):
        found.append(check)
        if not as_json:
            typer.echo(f"{check.verdict:4}  {check.name}: {check.text}")
    put = settings(found)
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in found]))
    elif put:
        typer.echo("\nFor the recipe, or behind --set:")
        for setting in put:
            typer.echo(f"  {setting}")
    if any(check.verdict == "fail" for check in found):
        raise typer.Exit(1)


def _say(what: str) -> None:
    typer.echo(what, err=True)
