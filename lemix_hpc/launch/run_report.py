"""The report of a run, whatever has become of it."""

from __future__ import annotations

from typing import Any

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.launch.rundir import RunDir
from lemix_hpc.launch.states import read_report, run_state
from lemix_hpc.records.reader import is_complete, stream_run
from lemix_hpc.report.build import summarise
from lemix_hpc.report.training_cost import read_cost


def report_of(run: RunDir) -> dict[str, Any]:
    """The written one, or one made from the records of a run that is not complete; with what training cost serving, if anybody
    has asked for that. Raises UserError if there is neither."""
    report = _report_of(run)
    cost = read_cost(run.path)
    return report if cost is None else report | {"training_cost": msgspec.to_builtins(cost)}


def _report_of(run: RunDir) -> dict[str, Any]:
    complete = run.profile_order.exists() or is_complete(run.path)
    if run.report.exists() and complete:
        return read_report(run)
    if run.profile_order.exists() or not run.facts.exists():
        state = run_state(run, run.read_record())
        raise UserError(f"{run.id} is {state} and has no report; `lemix logs {run.id}` shows what it did")
    return summarise(stream_run(run.path))
