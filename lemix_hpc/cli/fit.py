"""`lemix fit`: coefficients from any table of measured times."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lemix_hpc.profiling.coefficients import Residuals
    from lemix_hpc.profiling.fitting import FittedStage, FittedTimes
    from lemix_hpc.profiling.points import Measured, PointTable

FIGURES = ("median_rel_error", "p95_rel_error", "max_rel_error")


def fit(
    points: Annotated[
        list[Path],
        typer.Argument(
            metavar="POINTS.csv...",
            help="Tables with columns batch, length and ms_per_layer (or ms), optional context, kind, stage.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="quadratic, affine-quadratic, roofline or interpolated. By default cross-validation chooses.",
            show_default=False,
        ),
    ] = None,
    folds: Annotated[
        int,
        typer.Option(help="Folds of the cross-validation. As many folds as points leave out one point at a time."),
    ] = 10,
    seed: Annotated[int, typer.Option(help="Seed for assigning points to folds.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="Write a coefficient file.", show_default=False)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Plot predicted against measured times.", show_default=False)
    ] = None,
    hardware: Annotated[str | None, typer.Option(help="For --out: the device.", show_default=False)] = None,
    llm: Annotated[str | None, typer.Option(help="For --out: the language model.", show_default=False)] = None,
    dtype: Annotated[str | None, typer.Option(help="For --out: such as float16.", show_default=False)] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="For --out: decoder layers of the model.", show_default=False)
    ] = None,
    source: Annotated[str | None, typer.Option(help="For --out: where the times are from.", show_default=False)] = None,
) -> None:
    """Fit stage times to measured points, and print how well each form predicts held-out points."""
    from lemix_hpc.profiling.fitting import fit_points
    from lemix_hpc.profiling.plot import check_plot, draw
    from lemix_hpc.profiling.points import read_points

    facts = {"--hardware": hardware, "--llm": llm, "--dtype": dtype, "--layers": layers}
    _check_facts(facts, out)
    if plot is not None:
        check_plot(plot)
    table = read_points(points)
    stages = _by_stage(table)
    fitted = [fit_points(mine, model=model, folds=folds, seed=seed) for mine in stages]
    warnings = [
        *table.warnings,
        *_unfit(table),
        *(w for stage in fitted for f in stage.kinds.values() for w in f.warnings),
    ]
    if as_json:
        typer.echo(json.dumps(_summary(fitted, table, warnings)))
    else:
        _print(fitted, table)
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    if plot is not None:
        draw(fitted, plot)
    if out is not None:
        _write(out, fitted, table, points, facts, source, model)
    for path in filter(None, (plot, out)):
        typer.echo(f"Wrote {path}", err=True)


def _check_facts(facts: Mapping[str, object], out: Path | None) -> None:
    from lemix_hpc.config.errors import UserError

    missing = [name for name, value in facts.items() if value is None]
    if out is not None and missing:
        raise UserError(f"--out: the file says what was measured; give {', '.join(missing)} too")


def _by_stage(table: PointTable) -> list[list[Measured]]:
    """The points of each stage. Raises UserError where stages are missing, or where layers have stages."""
    from lemix_hpc.config.errors import UserError

    numbers = sorted({point.stage for point in table.points})
    if table.per_layer and len(numbers) > 1:
        raise UserError("times per layer are the same for all stages; leave the column stage out, or give ms per stage")
    if not table.per_layer and numbers != list(range(len(numbers))):
        raise UserError(f"stages count from 0 without gaps; found {', '.join(map(str, numbers))}")
    return [[point for point in table.points if point.stage == number] for number in numbers]


def _unfit(table: PointTable) -> list[str]:
    if not table.unfit:
        return []
    least = min(table.unfit, key=lambda point: (point.batch * point.length, point.context))
    return [
        f"{len(table.unfit)} points did not fit in memory and are left out; "
        f"the smallest has batch {least.batch}, length {least.length}"
    ]


def _fits(fitted: Sequence[FittedStage]) -> list[tuple[int, str, FittedTimes]]:
    return [(number, kind, times) for number, stage in enumerate(fitted) for kind, times in stage.kinds.items()]


def _print(fitted: Sequence[FittedStage], table: PointTable) -> None:
    from lemix_hpc.profiling.describe import describe

    for number, kind, times in _fits(fitted):
        what = f"{kind}, per layer" if table.per_layer else f"stage {number}, {kind}"
        folds = times.chosen.residuals.folds
        typer.echo(f"{what}: {len(times.points)} points, relative errors cross-validated in {folds} folds")
        typer.echo(f"  {'form':<18}{'median':>9}{'95 %':>9}{'largest':>9}{'R^2':>9}")
        for each in times.candidates:
            r = each.residuals
            errors = f"{r.median_rel_error:>9.1%}{r.p95_rel_error:>9.1%}{r.max_rel_error:>9.1%}"
            mark = "*" if each is times.chosen else " "
            typer.echo(f"{mark} {each.name:<18}{errors}{'-' if r.r2 is None else f'{r.r2:.4f}':>9}")
        typer.echo(f"* {describe(times.chosen.form)}\n")


def _summary(fitted: Sequence[FittedStage], table: PointTable, warnings: Sequence[str]) -> dict[str, Any]:
    """The figures of the chosen forms, of all forms, and every fit; of several fits the worst figures."""
    fits = _fits(fitted)
    worst = {name: max(getattr(t.chosen.residuals, name) for _, _, t in fits) for name in FIGURES}
    names = list(dict.fromkeys(times.chosen.name for _, _, times in fits))
    return {
        "model": names[0] if len(names) == 1 else "mixed",
        **worst,
        "models": _models(fits),
        "per_layer": table.per_layer,
        "fits": [_of_fit(number, kind, times) for number, kind, times in fits],
        "warnings": list(warnings),
    }


def _models(fits: Sequence[tuple[int, str, FittedTimes]]) -> dict[str, dict[str, float]]:
    residuals: dict[str, list[Residuals]] = {}
    for _, _, times in fits:
        for each in times.candidates:
            residuals.setdefault(each.name, []).append(each.residuals)
    return {
        name: {figure: max(getattr(one, figure) for one in found) for figure in FIGURES}
        for name, found in residuals.items()
    }


def _of_fit(number: int, kind: str, times: FittedTimes) -> dict[str, Any]:
    from lemix_hpc.profiling.blocks import block

    return {
        "stage": number,
        "kind": kind,
        "model": times.chosen.name,
        "coefficients": block(times.chosen.form).model_dump(mode="json"),
        "models": {each.name: each.residuals.model_dump(mode="json") for each in times.candidates},
    }


def _write(
    out: Path,
    fitted: Sequence[FittedStage],
    table: PointTable,
    points: Sequence[Path],
    facts: Mapping[str, Any],
    source: str | None,
    model: str | None,
) -> None:
    """The table is named in the file if it lies beside it."""
    import datetime
    import hashlib

    from lemix_hpc import __version__
    from lemix_hpc.config.errors import UserError
    from lemix_hpc.profiling.coefficients import save_coefficients
    from lemix_hpc.profiling.fitting import make_file

    command = ["lemix", "fit", *(path.name for path in points), *(["--model", model] if model else [])]
    provenance = {
        **({"source": source} if source else {}),
        "tables": {path.name: f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in points},
        "command": shlex.join(command),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "lemix": __version__,
    }
    beside = len(points) == 1 and points[0].absolute().parent == out.absolute().parent
    file = make_file(
        fitted,
        per_layer=table.per_layer,
        hardware=facts["--hardware"],
        model=facts["--llm"],
        dtype=facts["--dtype"],
        layers=facts["--layers"],
        points=points[0].name if beside else None,
        provenance=provenance,
    )
    try:
        save_coefficients(file, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from error
