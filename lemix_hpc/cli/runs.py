"""`lemix ps`, `logs`, `cancel` and others: runs that were started before."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lemix_hpc.cli.run import Json, RunName

if TYPE_CHECKING:
    from lemix_hpc.launch.rundir import RunDir, RunRecord
    from lemix_hpc.records.attempts import Attempt


RECENT_S = 7 * 86400.0


def ps(
    as_json: Json = False,
    every: Annotated[bool, typer.Option("--all", help="Show runs that ended more than a week ago too.")] = False,
) -> None:
    """List runs and their states."""
    from lemix_hpc.config.errors import UserError
    from lemix_hpc.launch.registry import known_runs
    from lemix_hpc.launch.states import FINAL, run_states

    runs, rows = [], []
    for run in known_runs():
        try:
            runs.append((run, run.read_record()))
        except UserError as error:
            rows.append(_unknown_row(run, str(error)))
    rows += [_row(run, record, state) for (run, record), state in zip(runs, run_states(runs), strict=True)]
    rows.sort(key=lambda row: row["created"])
    shown = [r for r in rows if every or r["state"] not in FINAL or time.time() - r["created"] < RECENT_S]
    _add_reasons(shown)
    if as_json:
        typer.echo(json.dumps(shown))
        return
    _print_rows(shown)
    for row in shown:
        if "damage" in row:
            typer.echo(row["damage"], err=True)
        if row.get("reason"):
            told = "" if row["hint"] is None else f": {row['hint']}"
            typer.echo(f"{row['id']} waits, {row['reason']}{told}", err=True)


def watch(run: RunName, as_json: Json = False) -> None:
    """Show what a run does, from anywhere, until it ends or Ctrl-C; it goes on then. Exit code 1 if it fails.

    With --json a line of JSON whenever something changes, and every half minute.
    """
    from lemix_hpc.cli.follow import watch as watch_run
    from lemix_hpc.launch.registry import find_run

    raise typer.Exit(watch_run(find_run(run), as_json=as_json))


def logs(
    run: RunName,
    rank: Annotated[int | None, typer.Option(min=0, help="Only this rank's log.")] = None,
    attempt: Annotated[int | None, typer.Option(min=0, help="Of this attempt; by default the last one.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new lines until the run ends.")] = False,
) -> None:
    """Print the logs of a run's last attempt."""
    from lemix_hpc.launch.logs import print_logs
    from lemix_hpc.launch.registry import find_run

    print_logs(find_run(run), rank, attempt, follow=follow, write=typer.echo)


def stop(run: RunName) -> None:
    """Let a run finish what it has begun, save, report and end. `lemix resume` can go on with it."""
    from lemix_hpc.launch.cancel import stop as stop_run
    from lemix_hpc.launch.registry import find_run

    found = find_run(run)
    typer.echo(f"{found.id} {stop_run(found, found.read_record())}")


def change(
    run: RunName,
    changes: Annotated[list[str], typer.Argument(metavar="KEY=VALUE", help="Such as policy.max_hold_s=5.")],
) -> None:
    """Change keys of the policy while a run goes on, for all its attempts from now on."""
    from lemix_hpc.launch.registry import find_run
    from lemix_hpc.launch.settings import change as change_run

    found = find_run(run)
    change_run(found, found.read_record(), changes)
    typer.echo(f"{found.id} takes it up in a second or two, and its report will say so")


def url(run: RunName, as_json: Json = False) -> None:
    """Print where a run's OpenAI API is now: each attempt may be on another host."""
    from lemix_hpc.config.errors import UserError
    from lemix_hpc.launch.registry import find_run
    from lemix_hpc.launch.states import read_progress, run_state

    found = find_run(run)
    state, progress = run_state(found, found.read_record()), read_progress(found)
    if state != "RUNNING":
        raise UserError(f"{found.id} is {state}, so nobody answers; `lemix ps` shows when it runs")
    if progress is None or progress.state == "starting":
        raise UserError(f"{found.id} is starting; ask again in a moment")
    if progress.address is None or progress.state != "running":
        why = "is ending" if progress.address is not None else "has no OpenAI API: its recipe has no serving.http"
        raise UserError(f"{found.id} {why}")
    typer.echo(json.dumps({"address": progress.address, "keys": progress.keys}) if as_json else progress.address)


def cancel(run: RunName) -> None:
    """End a run at once."""
    from lemix_hpc.launch.cancel import cancel as cancel_run
    from lemix_hpc.launch.registry import find_run

    found = find_run(run)
    cancel_run(found, found.read_record())
    typer.echo(f"Cancelled {found.id}")


def _add_reasons(rows: list[dict[str, Any]]) -> None:
    """Why runs wait, in Slurm's word and in ours."""
    from lemix_hpc.launch.job_states import pending_reasons
    from lemix_hpc.launch.queue_reasons import why
    from lemix_hpc.launch.states import WAITING

    waiting = [row for row in rows if row["state"] in WAITING and row["job"] is not None]
    reasons = pending_reasons({row["job"] for row in waiting})
    for row in waiting:
        reason = reasons.get(row["job"])
        row |= {"reason": reason, "hint": None if reason is None else why(reason)}


def _unknown_row(run: RunDir, why: str) -> dict[str, Any]:
    """Of a run whose files are damaged, or on a file system that does not answer."""
    from lemix_hpc.launch.registry import made_at

    empty = dict.fromkeys(("cluster", "job", "pid", "address"))
    counts = dict.fromkeys(("served", "requests", "trained"), 0)
    row = {
        "id": run.id,
        "state": "UNKNOWN",
        "created": made_at(run),
        "directory": str(run.path),
        "attempts": [],
        "damage": why,
    }
    return row | empty | counts


def _row(run: RunDir, record: RunRecord, state: str) -> dict[str, Any]:
    from lemix_hpc.config.errors import UserError

    try:
        return _known_row(run, record, state)
    except (UserError, OSError) as error:
        return _unknown_row(run, str(error))


def _known_row(run: RunDir, record: RunRecord, state: str) -> dict[str, Any]:
    from lemix_hpc.launch.states import read_progress
    from lemix_hpc.records.attempts import attempts

    progress = read_progress(run)
    return {
        "id": run.id,
        "state": state,
        "cluster": record.cluster,
        "job": record.job,
        "pid": record.pid,
        "created": record.created,
        "served": progress.served if progress else 0,
        "requests": progress.requests if progress else 0,
        "trained": progress.trained if progress else 0,
        "address": progress.address if progress else None,
        "directory": str(run.path),
        "attempts": [_attempt(attempt) for attempt in attempts(run.path)],
    }


def _attempt(attempt: Attempt) -> dict[str, Any]:
    """Why it ended; None while it runs."""
    end = attempt.ended
    ended = None if end is None else {"reason": end.reason, "message": end.message, "time": end.time}
    return {"number": attempt.number, "ended": ended}


def _endings(row: dict[str, Any]) -> str:
    """How the attempts of a run ended, in short, if there is more to tell than the state does."""
    ends = [attempt["ended"]["reason"] if attempt["ended"] else "..." for attempt in row["attempts"]]
    return "" if ends in ([], ["finished"], ["..."]) else ", ".join(ends)


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from lemix_hpc.launch.states import FINAL

    table = [("RUN", "STATE", "CLUSTER", "JOB/PID", "STARTED", "SERVED", "TRAINED", "ATTEMPTS ENDED", "OPENAI API")]
    for row in rows:
        started = time.strftime("%m-%d %H:%M", time.localtime(row["created"]))
        served = f"{row['served']}/{row['requests']}"
        number = str(row["job"] or row["pid"] or "-")
        # Nobody answers there any more once the run is over.
        address = row["address"] if row["address"] and row["state"] not in FINAL else ""
        shown = (
            row["id"],
            row["state"],
            row["cluster"] or "-",
            number,
            started,
            served,
            str(row["trained"]),
            _endings(row),
            address,
        )
        table.append(shown)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
