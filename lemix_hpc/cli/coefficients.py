"""`lemix coefficients`: look at coefficient files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lemix_hpc.cli.export_coefficients import export

if TYPE_CHECKING:
    from lemix_hpc.profiling.coefficients import CoefficientFile, Times
    from lemix_hpc.profiling.compare import Compared

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Show, check and compare coefficient files, and export what a run learned.",
)
app.command()(export)

FilePath = Annotated[Path, typer.Argument(metavar="FILE", help="A coefficient file.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.command()
def show(file: FilePath, as_json: Json = False) -> None:
    """Print a coefficient file in plain units."""
    from lemix_hpc.profiling.coefficients import load_coefficients

    loaded = load_coefficients(file)
    if as_json:
        typer.echo(loaded.model_dump_json(by_alias=True, exclude_none=True))
        return
    for line in _lines(loaded):
        typer.echo(line)


@app.command()
def check(file: FilePath, as_json: Json = False) -> None:
    """Check a coefficient file, and that it fits the points that it names. Exit code 2 if not."""
    from lemix_hpc.profiling.coefficients import load_coefficients
    from lemix_hpc.profiling.verify import verify

    told = verify(load_coefficients(file), file)
    typer.echo(json.dumps({"file": str(file), "check": told}) if as_json else f"{file}: {told}")


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="FILE", help="A coefficient file.", show_default=False)],
    second: Annotated[
        Path, typer.Argument(metavar="OTHER", help="The coefficient file to compare with.", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """Compare what two files predict for passes through all stages."""
    from lemix_hpc.profiling.coefficients import load_coefficients
    from lemix_hpc.profiling.compare import compare

    rows = compare(load_coefficients(first), load_coefficients(second))
    if as_json:
        keys = ("kind", "batch", "length", "context", "first_s", "second_s", "change")
        typer.echo(json.dumps([{key: getattr(row, key) for key in keys} for row in rows]))
        return
    typer.echo(f"A: {first}\nB: {second}\n")
    for line in _table(rows):
        typer.echo(line)


def _lines(file: CoefficientFile) -> Iterator[str]:
    yield f"{file.model}, {file.dtype}, {file.layers} layers, on {file.hardware}"
    for name, times in [("per layer", file.per_layer), *((f"stage {s}", t) for s, t in enumerate(file.stages or []))]:
        if times is not None:
            yield f"\n{name}"
            yield from _of_times(times)
    links = file.links.model_dump(exclude_none=True) if file.links else {}
    if links:
        yield "\nlinks"
        yield from (f"  {name}: {value:g}" for name, value in links.items())
    yield "\nfitted on"
    valid = file.valid.model_dump(exclude_none=True)
    for name, limits in valid.items():
        yield f"  {name}: {limits[0]} to {limits[1]}" if isinstance(limits, list) else f"  {name}: {limits}"
    if not valid:
        yield "  an unknown range"
    yield "\nprovenance"
    for name, value in file.provenance.items():
        inner = value.items() if isinstance(value, dict) else ()
        yield f"  {name}:" if inner else f"  {name}: {value}"
        yield from (f"    {key}: {told}" for key, told in inner)
    if file.points:
        yield f"  points: {file.points}"


def _of_times(times: Times) -> Iterator[str]:
    from lemix_hpc.profiling.describe import describe, describe_residuals, duration

    for kind in ("forward", "backward"):
        given, residuals = getattr(times, kind), getattr(times.residuals, kind)
        if isinstance(given, float):
            yield f"  {kind}: {given:g} times the forward"
        else:
            yield f"  {kind}: {given.form}: {describe(given.time())}"
        if residuals is not None:
            yield f"    {describe_residuals(residuals)}"
    if times.step_s is not None:
        yield f"  optimizer step: {duration(times.step_s)}"
    if times.memory is not None:
        held = times.memory.model_dump(exclude_none=True)
        yield "  memory: " + ", ".join(f"{name.replace('_', ' ')} {value:,.10g}" for name, value in held.items())


def _table(rows: Sequence[Compared]) -> Iterator[str]:
    yield f"{'pass':<9}{'batch':>6}{'length':>8}{'cached':>8}{'A, ms':>12}{'B, ms':>12}{'B / A - 1':>11}"
    for r in rows:
        times = f"{1e3 * r.first_s:>12.4g}{1e3 * r.second_s:>12.4g}{r.change:>+11.1%}"
        yield f"{r.kind:<9}{r.batch:>6}{r.length:>8}{r.context:>8}{times}"
    largest = max(rows, key=lambda row: abs(row.change), default=None)
    if largest is None:
        yield "No pass of the grid is within the measured range of both files."
    else:
        mean = sum(abs(row.change) for row in rows) / len(rows)
        yield f"\nThe mean difference is {mean:.1%}, the largest {abs(largest.change):.1%}."
