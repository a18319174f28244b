"""`lemix doctor`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="Also check what this recipe needs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Check that runs can start here. Exit code 1 if something is broken."""
    from lemix_hpc.launch.doctor import checks

    found = []
    for check in checks(recipe):
        found.append(check)
        if not as_json:
            typer.echo(f"{check.verdict:4}  {check.name}: {check.text}")
    if as_json:
        typer.echo(json.dumps([{"name": c.name, "verdict": c.verdict, "text": c.text} for c in found]))
    if any(check.verdict == "fail" for check in found):
        raise typer.Exit(1)
