"""The `lemix` command. Everything heavy is imported by the commands that need it, so that `--help` is quick."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lemix_hpc import __version__
from lemix_hpc.cli import (
    capacity,
    checkpoint,
    coefficients,
    compare,
    data,
    doctor,
    explain,
    fit,
    init,
    plan,
    profile,
    punish,
    replay,
    report,
    run,
    runs,
    simulate,
    study,
    trace,
)
from lemix_hpc.cli.compiling import tell_of_compiling
from lemix_hpc.config.errors import UserError

app = typer.Typer(
    help="Serve a language model and keep training it on the same devices, inside ordinary Slurm allocations.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(init.init)
app.command()(run.run)
app.command()(run.submit)
app.command()(run.resume)
app.command()(runs.ps)
app.command()(runs.watch)
app.command()(runs.logs)
app.command()(runs.stop)
app.command()(runs.cancel)
app.command("set")(runs.change)
app.command()(punish.punish)
app.command()(runs.url)
app.command()(report.report)
app.command()(trace.trace)
app.command()(simulate.simulate)
app.command()(compare.compare)
app.command()(study.study)
app.command()(capacity.capacity)
app.command()(replay.replay)
app.command()(explain.explain)
app.command()(doctor.doctor)
app.command()(plan.plan)
app.command()(fit.fit)
app.command()(profile.profile)
app.command()(data.data)
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(coefficients.app, name="coefficients")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"lemix {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: a mistake of the user, or a file that is closed to them, is a message and exit code 2, never a traceback; a
    file system that is full, or whose server is away, one and exit code 1."""
    tell_of_compiling()
    try:
        app()
    except UserError as error:
        # It may quote a path that is not UTF-8.
        typer.echo(str(error).encode(errors="backslashreplace").decode(), err=True)
        sys.exit(2)
    except OSError as error:
        from lemix_hpc.records.files import PASSING

        closed = isinstance(error, PermissionError) and error.filename is not None
        if not closed and error.errno not in PASSING:
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        advice = "" if closed else "; try again when that file system is well, or has room"
        typer.echo(f"{where}{error.strerror}{advice}".encode(errors="backslashreplace").decode(), err=True)
        sys.exit(2 if closed else 1)
