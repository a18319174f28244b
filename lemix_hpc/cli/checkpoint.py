"""`lemix checkpoint`: what a run has saved of its training, and weights for others to load."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lemix_hpc.cli.run import Json, RunName
from lemix_hpc.config.errors import UserError

if TYPE_CHECKING:
    from lemix_hpc.checkpoints.store import Checkpoint

app = typer.Typer(
    help="List, check and export what a run has saved of its training.", no_args_is_help=True, rich_markup_mode=None
)
Step = Annotated[int | None, typer.Option(min=0, help="The checkpoint after so many steps. By default the newest.")]


@app.command("list")
def list_(run: RunName, as_json: Json = False) -> None:
    """List the checkpoints of a run."""
    checkpoints, unreadable = _all(run)
    rows = [_row(checkpoint) for checkpoint in checkpoints]
    for problem in unreadable.values():
        typer.echo(problem, err=True)
    if as_json:
        typer.echo(json.dumps(rows))
        return
    from rich.table import Table

    from lemix_hpc.cli.show import print_wide

    table = Table()
    for column in ("step", "versions", "saved", "size", "directory"):
        table.add_column(column, justify="left" if column == "directory" else "right")
    for row in rows:
        saved = time.strftime("%m-%d %H:%M:%S", time.localtime(row["created"]))
        versions = ", ".join(str(version) for version in row["versions"].values())
        table.add_row(str(row["step"]), versions, saved, _size(row["nbytes"]), row["directory"])
    print_wide(table)


@app.command()
def show(run: RunName, step: Step = None, as_json: Json = False) -> None:
    """Show what is in a checkpoint."""
    import msgspec

    checkpoint = _chosen(run, step)
    manifest = checkpoint.manifest
    if as_json:
        typer.echo(json.dumps({"directory": str(checkpoint.path), **msgspec.to_builtins(manifest)}))
        return
    from rich.table import Table

    from lemix_hpc.cli.show import print_wide

    typer.echo(
        f"{checkpoint.path}\n"
        f"run {manifest.run}, step {manifest.step}, {_size(manifest.nbytes)}\n"
        f"{manifest.model.get('model_type', 'no model')} served in {manifest.dtype} by {manifest.engine}; nodes: "
        f"{manifest.nodes} x {manifest.stages} stages, across_nodes: {manifest.across_nodes}"
    )
    table = Table()
    for column in ("node", "version", "steps", "stage", "size", "snapshot", "writing", "file"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for node in manifest.saved:
        for file in node.files:
            seconds = (f"{file.snapshot_s:.3f} s", f"{file.write_s:.3f} s")
            numbers = (str(node.node), str(node.version), str(node.steps), str(file.stage), _size(file.nbytes))
            table.add_row(*numbers, *seconds, file.name)
    print_wide(table)


@app.command()
def verify(run: RunName, step: Step = None, as_json: Json = False) -> None:
    """Read the files of all checkpoints, or of one, and compare their checksums. Exit code 1 if any is damaged."""
    from lemix_hpc.checkpoints.store import damage

    checkpoints, unreadable = _all(run) if step is None else ([_chosen(run, step)], {})
    found = {str(checkpoint.path): list(damage(checkpoint)) for checkpoint in checkpoints}
    found |= {path: [problem] for path, problem in unreadable.items()}
    if as_json:
        typer.echo(json.dumps(found))
    else:
        for path, problems in found.items():
            typer.echo("\n".join(problems) if problems else f"{path}: whole")
    if any(found.values()):
        raise typer.Exit(1)


@app.command()
def export(
    run: RunName,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new directory.", show_default=False)],
    step: Step = None,
    node: Annotated[int | None, typer.Option(min=0, help="The weights of this node.")] = None,
    mean: Annotated[bool, typer.Option("--mean", help="The mean of the weights of all nodes.")] = False,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16. By default as they were served.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Take the tokenizer from here. By default from the model.")
    ] = None,
) -> None:
    """Write the weights as a Hugging Face directory, which transformers and vLLM load.

    Of nodes that keep their own updates, each has a directory below DIR, unless --node or --mean is given.
    """
    if mean and node is not None:
        raise UserError("--mean and --node: give one of the two")
    from lemix_hpc.checkpoints.export import export as export_checkpoint

    checkpoint = _chosen(run, step)
    for path in export_checkpoint(checkpoint, directory, node=node, mean=mean, dtype=dtype, tokenizer=tokenizer):
        typer.echo(f"Wrote {path}, step {checkpoint.manifest.step}")


def _all(run: str) -> tuple[list[Checkpoint], dict[str, str]]:
    """Oldest first, and what is wrong with those that cannot be read, by directory. Raises UserError if there are none."""
    from lemix_hpc.checkpoints.store import CHECKPOINTS, Checkpoint, complete_paths
    from lemix_hpc.launch.registry import find_run

    directory = find_run(run).path / CHECKPOINTS
    found: list[Checkpoint] = []
    unreadable: dict[str, str] = {}
    for path in complete_paths(directory):
        try:
            found.append(Checkpoint.read(path))
        except UserError as error:
            unreadable[str(path)] = str(error)
    if not found and not unreadable:
        raise UserError(
            f"{directory}: has no checkpoint; a run that trains saves one at its end, and more as `training.checkpoint` says"
        )
    return found, unreadable


def _chosen(run: str, step: int | None) -> Checkpoint:
    found, unreadable = _all(run)
    by_step = {checkpoint.manifest.step: checkpoint for checkpoint in found}
    if not found:
        raise UserError("\n".join(unreadable.values()))
    if step is None:
        return found[-1]
    if step not in by_step:
        raise UserError(
            f"--step {step}: there are checkpoints after {', '.join(map(str, by_step))} steps; give one of these"
        )
    return by_step[step]


def _row(checkpoint: Checkpoint) -> dict[str, Any]:
    manifest = checkpoint.manifest
    return {
        "step": manifest.step,
        "versions": {str(node.node): node.version for node in manifest.saved},
        "created": manifest.created,
        "nbytes": manifest.nbytes,
        "directory": str(checkpoint.path),
    }


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
