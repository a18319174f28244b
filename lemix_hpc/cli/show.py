"""How reports look in a terminal, and how wide tables are printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lemix_hpc.config.errors import UserError
from lemix_hpc.records.made_by import made_by

if TYPE_CHECKING:
    from lemix_hpc.launch.rundir import RunDir


def render_report(run: RunDir, report: dict[str, Any]) -> RenderableType:
    """The report of a run, or what a profiling job has found. Raises UserError if it lacks what is to be shown."""
    from lemix_hpc.report.table import render

    profile = run.profile_order.exists()
    try:
        return _profile_table(report) if profile else render(report)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        # One that this version has written has all that is shown.
        again = "" if profile else ", or remove it, and one is made again"
        raise UserError(
            f"{run.report}: not a report that this version can show: {type(error).__name__}: {error}{made_by(run.report)}; "
            f"`lemix report --json` prints it as it is{again}"
        ) from error


def print_wide(table: Table) -> None:
    """As wide as it is: a table that is cut or folded cannot be read."""
    console = Console()
    wanted = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    Console(width=max(console.width, wanted)).print(table)


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
