"""`lemix init`: a first recipe from a few questions or flags."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lemix_hpc.config.errors import UserError

if TYPE_CHECKING:
    from lemix_hpc.launch.site import Hosts

NONE = "none"


def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The recipe to write. It must not exist.")] = Path(
        "recipe.yaml"
    ),
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Hugging Face checkpoint directory. Without it: a tiny model.", show_default=False
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON lines to train on. Without it: no training.", show_default=False),
    ] = None,
    partition: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Slurm partition; `none` for this machine. By default the one with GPUs, or Slurm's default.",
            show_default=False,
        ),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(
            metavar="N|NxSIZE",
            help="GPUs of a host to use, such as 4 or 4x80GB; 0 for none. By default all.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a first recipe that runs as it is. On a terminal it asks for what no flag gives."""
    from lemix_hpc.launch.first_recipe import Answers, first_recipe, with_gpus

    if file.exists() or file.is_symlink():
        raise _taken(file)
    asks = sys.stdin.isatty()
    if asks and model is None:
        model = _path("Model, a Hugging Face checkpoint directory (empty: a tiny one with random weights)")
    if asks and data is None:
        data = _path("Data to train on, JSON lines (empty: no training)")
    hosts = _hosts(partition, asks=asks)
    if asks and gpus is None and hosts.gpus:
        gpus = typer.prompt(
            "GPUs of a host to use, with their memory if you know it, such as 4x80GB", str(hosts.gpus), err=True
        )
    hosts = hosts if gpus is None else with_gpus(hosts, gpus)
    text = first_recipe(Answers(_name(file), model, data, hosts), file)
    _write(file, text)
    where = "on this machine" if hosts.partition is None else f"in partition {hosts.partition}"
    typer.echo(f"Wrote {file}, for a run {where} on {hosts.gpus or 'no'} GPU{'s' * (hosts.gpus != 1)}.", err=True)
    typer.echo(
        f"Next: `lemix run {file} --dry-run` shows what would start, and `lemix run {file}` starts it.", err=True
    )


def _taken(file: Path) -> UserError:
    return UserError(f"{file}: is there already, and nothing is overwritten; choose another name")


def _path(question: str) -> Path | None:
    answer = typer.prompt(question, "", show_default=False, err=True).strip()
    return Path(answer).expanduser() if answer else None


def _name(file: Path) -> str:
    """A run's name from the file's."""
    import re

    return re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).lstrip("._-")[:64] or "first"


def _hosts(partition: str | None, *, asks: bool) -> Hosts:
    from lemix_hpc.launch.site import cluster_hosts, this_machine
    from lemix_hpc.launch.start import slurm_answers

    if partition == NONE:
        return this_machine()
    if not slurm_answers():
        if partition is not None:
            raise UserError("--partition: Slurm does not answer here; leave it out for a run on this machine")
        return this_machine()
    found = {hosts.partition: hosts for hosts in cluster_hosts()}
    usual = max(found.values(), key=lambda hosts: (hosts.gpus > 0, hosts.is_default, hosts.gpus))
    if partition is None and asks:
        for hosts in found.values():
            typer.echo(f"  {hosts.told}", err=True)
        partition = typer.prompt(f"Partition, or {NONE} for this machine", usual.partition, err=True)
        if partition == NONE:
            return this_machine()
    if partition is None:
        return usual
    if partition not in found:
        raise UserError(f"--partition: there is no {partition}; sinfo names {', '.join(map(str, found))}")
    return found[partition]


def _write(file: Path, text: str) -> None:
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError as error:
        raise _taken(file) from error
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from error
