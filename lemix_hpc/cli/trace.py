"""`lemix trace`: a run as a trace that Perfetto opens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lemix_hpc.cli.run import RunName


def trace(
    run: RunName,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where to; compressed if the name ends in .gz. By default trace.json.gz in the run's directory.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write what all stages did and what the policy decided as a trace, to look at in https://ui.perfetto.dev."""
    from lemix_hpc.config.errors import UserError
    from lemix_hpc.launch.registry import find_run
    from lemix_hpc.records.reader import stream_run
    from lemix_hpc.report.trace import write_trace

    found = find_run(run)
    path = out or found.path / "trace.json.gz"
    try:
        count = write_trace(stream_run(found.path), path, found.id)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    typer.echo(f"Wrote {count:,} events to {path}; open it in https://ui.perfetto.dev or chrome://tracing", err=True)
