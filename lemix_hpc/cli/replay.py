"""`lemix replay`: the load of a recorded run under another policy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from lemix_hpc.cli.headings import heading, shown
from lemix_hpc.cli.run import Json, RunName

if TYPE_CHECKING:
    from lemix_hpc.studies.sweep import Figures


def replay(
    run: RunName,
    policy: Annotated[str, typer.Option(metavar="NAME", help="Placement to simulate; `same` for the recorded policy.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="policy.KEY=VALUE", help="Change another key of the policy. May be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Simulate the recorded load of a run under another policy, and print it beside the run.

    The run's own policy is simulated too, so that what the simulator gets wrong is not taken for a gain.
    """
    from lemix_hpc.launch.registry import find_run

    found = find_run(run)
    from lemix_hpc.config.check import check_placement
    from lemix_hpc.config.errors import UserError
    from lemix_hpc.policy.placements import PLACEMENTS
    from lemix_hpc.report.build import summarise
    from lemix_hpc.studies.recorded_run import recorded_recipe
    from lemix_hpc.studies.replay import replay as simulate_again
    from lemix_hpc.studies.sweep import figures

    placement = [] if policy == "same" else [f"policy.placement={policy}"]
    split = (
        []
        if policy == "same" or (policy in PLACEMENTS and PLACEMENTS[policy].splits)
        else ["policy.training_nodes=null"]
    )
    recipe = recorded_recipe(found.recipe, [*placement, *split, *(overrides or [])])
    for problem in check_placement(recipe):
        raise UserError(f"{problem.key}: {problem.text}")
    records, simulated = simulate_again(found.path, recipe)
    itself = (
        simulated
        if policy == "same" and not overrides
        else simulate_again(found.path, recorded_recipe(found.recipe))[1]
    )
    recorded = figures(records, summarise(records))
    same, replayed = (figures(each.records, each.summary) for each in (itself, simulated))
    if as_json:
        typer.echo(json.dumps({"recorded": recorded, "same": same, "replayed": replayed}))
        return
    columns, told = {"run": recorded, "simulated": same}, f"{records.facts.policy}, run and simulated"
    if simulated is not itself:
        other = simulated.records.facts.policy
        columns["changed" if other == records.facts.policy else other] = replayed
        told += f"; {other}, simulated; its change"
    typer.echo(f"{found.id}\n{told}")
    _print(columns)


def _print(columns: dict[str, Figures]) -> None:
    """What the run did, its own policy in simulated time, and another one if there is one, compared with that."""
    from rich import box
    from rich.table import Table

    from lemix_hpc.cli.show import print_wide
    from lemix_hpc.report.table import ABSENT

    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
    table.add_column("")
    for name in (*columns, "change"):
        table.add_column(name, justify="right")
    *_, before, after = columns.values()
    for name in before:
        values = [figures[name] for figures in columns.values()]
        if any(value is not None for value in values):
            old, new = before[name], after[name]
            change = f"{new / old - 1.0:+.1%}" if old and new is not None else ABSENT
            table.add_row(heading(name), *(shown(name, value) for value in values), change)
    print_wide(table)
