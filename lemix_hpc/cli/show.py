"""How reports look in a terminal, and how wide tables are printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from lemix_hpc.cli.about import model_of
from lemix_hpc.config.errors import UserError
from lemix_hpc.records.made_by import made_by

if TYPE_CHECKING:
    from lemix_hpc.launch.rundir import RunDir


def render_report(run: RunDir, report: dict[str, Any]) -> RenderableType:
    """The report of a run, or what a profiling job has found. Raises UserError if it lacks what is to be shown."""
    from lemix_hpc.report.table import render

    profile = run.profile_order.exists()
    try:
        return _profile_table(report) if profile else Group(_about(run), render(report))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        # One that this version has written has all that is shown.
        again = "" if profile else ", or remove it, and one is made again"
        raise UserError(
            f"{run.report}: not a report that this version can show: {type(error).__name__}: {error}{made_by(run.report)}; "
            f"`lemix report --json` prints it as it is{again}"
        ) from error


def _about(run: RunDir) -> Text:
    """Which run it is, of what, and where; as far as its files tell."""
    try:
        record = run.read_record()
    except UserError:
        where = ""
    else:
        where = (
            "simulated" if record.cluster == "simulated" else f"job {record.job}" if record.job else f"on {record.host}"
        )
    facts = "  ".join(fact for fact in (model_of(run), where) if fact)
    return Text.assemble((run.id, "bold"), (f"  {facts}", "dim"))


def print_wide(table: Table) -> None:
    """As wide as it is: a table that is cut or folded cannot be read."""
    console = Console()
    wanted = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    Console(width=max(console.width, wanted)).print(table)


def print_in_parts(table: Table, beside: Sequence[str]) -> None:
    """On a terminal that is too narrow for it as several tables below one another, each with the columns `beside` first; else
    as it is."""
    console = Console()
    for part in parts_of(table, beside, console.width) if console.is_terminal else [table]:
        print_wide(part)


def parts_of(table: Table, beside: Sequence[str], width: int) -> list[Table]:
    """The table cut between columns, so that each part is at most so wide, if its first column beside those allows that."""
    kept = [column for column in table.columns if column.header in beside]
    widths = {
        id(column): 2 + max(map(cell_len, [str(column.header), *map(str, column.cells)])) for column in table.columns
    }
    room = width - sum(widths[id(column)] for column in kept)
    groups: list[list[Column]] = [[]]
    for column in table.columns[len(kept) :]:
        if groups[-1] and sum(widths[id(each)] for each in [*groups[-1], column]) > room:
            groups.append([])
        groups[-1].append(column)
    return [_of_columns(table, [*kept, *group]) for group in groups]


def _of_columns(table: Table, columns: Sequence[Column]) -> Table:
    part = Table(box=table.box, header_style=table.header_style, pad_edge=table.pad_edge)
    for column in columns:
        part.add_column(column.header, justify=column.justify, no_wrap=True)
    for row, cells in zip(table.rows, zip(*(column.cells for column in columns), strict=True), strict=True):
        part.add_row(*cells, end_section=row.end_section)
    return part


def _profile_table(report: dict[str, Any]) -> RenderableType:
    """How well the fitted times of each stage hold on points that the fit did not see."""
    from lemix_hpc.profiling.coefficients import load_coefficients

    file = load_coefficients(Path(report["coefficients"]))
    table = Table(title=f"{file.model}, {file.dtype}, on {file.hardware}", title_justify="left")
    for column in ("stage", "pass", "points", "median error", "95 %", "largest"):
        table.add_column(column, justify="left" if column == "pass" else "right")
    for stage, times in enumerate(file.stages or []):
        for kind in ("forward", "backward"):
            found = getattr(times.residuals, kind) if times.residuals else None
            if found is not None:
                errors = (found.median_rel_error, found.p95_rel_error, found.max_rel_error)
                table.add_row(str(stage), kind, str(found.points), *(f"{error:.1%}" for error in errors))
    missing = f", {report['did_not_fit']} did not fit into memory" if report["did_not_fit"] else ""
    path = Text(report["coefficients"], no_wrap=True, overflow="ignore")
    return Group(table, *report["warnings"], f"{report['points']} points in {report['seconds']} s{missing}", path)
