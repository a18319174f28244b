"""`lemix coefficients export`: what a run learned about stage times, as a coefficient file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lemix_hpc.cli.run import RunName
from lemix_hpc.config.text_file import BROKEN_JSON

if TYPE_CHECKING:
    from lemix_hpc.launch.rundir import RunDir
    from lemix_hpc.records.schema import LearnedTimes


def export(
    run: RunName,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The file to write. By default RUN.yaml in the current directory.", show_default=False
        ),
    ] = None,
) -> None:
    """Write the stage times that a run learned as a new coefficient file."""
    from lemix_hpc.config.errors import UserError
    from lemix_hpc.config.load import load_recipe
    from lemix_hpc.launch.registry import find_run
    from lemix_hpc.profiling.coefficients import load_coefficients, save_coefficients
    from lemix_hpc.profiling.learned import learned_file
    from lemix_hpc.records.schema import COEFFICIENTS

    found = find_run(run)
    path = Path(f"{found.id}.yaml") if out is None else out
    if path.exists():
        raise UserError(f"{path} exists; name a new file with --out")
    told = _read_learned(found)
    provenance = {
        "source": f"learned by run {found.id}",
        "run": str(found.path),
        "started_from": told.source or "measured at the start of the run",
        "passes": {f"stage {lesson.stage} {lesson.kind}": lesson.passes for lesson in told.learned},
    }
    stages = load_recipe(found.recipe).nodes.stages
    file = learned_file(load_coefficients(found.path / COEFFICIENTS), stages, told.learned, provenance)
    try:
        save_coefficients(file, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; name another file with --out") from error
    typer.echo(f"Wrote {path}")


def _read_learned(run: RunDir) -> LearnedTimes:
    """What a run wrote at its end; UserError if it has not, or learned nothing."""
    import msgspec

    from lemix_hpc.config.errors import UserError
    from lemix_hpc.records.schema import LEARNED, LearnedTimes

    path = run.path / LEARNED
    try:
        told = msgspec.json.decode(path.read_bytes(), type=LearnedTimes)
    except FileNotFoundError:
        raise UserError(f"{run.id} has no {LEARNED}; a run writes it when it ends") from None
    except BROKEN_JSON as error:
        raise UserError(f"{path}: not a file that a run wrote: {error}") from error
    if not told.learned:
        raise UserError(f"{run.id} learned no stage times: no pass of it was measured")
    return told
