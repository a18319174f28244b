"""`lemix punish`: break a run at random."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from lemix_hpc.cli.run import RunName
from lemix_hpc.config.errors import UserError

if TYPE_CHECKING:
    from lemix_hpc.launch.punish import Kind


def punish(
    run: RunName,
    mean_seconds: Annotated[
        float, typer.Option(min=0.1, help="Mean time between two blows, while the run works.")
    ] = 20.0,
    kinds: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Some of rank,pause,engine,step: kill or stop a rank, kill an engine, a step. On a one-machine cluster also "
            "slurmd,controller.",
        ),
    ] = "rank",
    count: Annotated[int | None, typer.Option(min=1, help="Blows; by default until the run has ended.")] = None,
    pause_seconds: Annotated[float, typer.Option(min=0.1, help="How long a rank is stopped, or a daemon down.")] = 5.0,
    seed: Annotated[int, typer.Option(help="Of times and choices.")] = 0,
) -> None:
    """Kill or stop random processes of a run on this host, to see that nothing is lost."""
    from lemix_hpc.launch.punish import Punisher
    from lemix_hpc.launch.registry import find_run

    found = find_run(run)
    punisher = Punisher(found, _kinds(kinds), mean_s=mean_seconds, pause_s=pause_seconds, seed=seed)
    blows = 0
    for blow in punisher.blows(count):
        blows += 1
        typer.echo(f"{time.strftime('%H:%M:%S')} {blow.kind}: {blow.what}")
    typer.echo(f"{blows} blows")


def _kinds(text: str) -> tuple[Kind, ...]:
    from lemix_hpc.launch.punish import KINDS

    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise UserError(f"--kinds: there is no {unknown[0]!r}; give some of {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in names)
