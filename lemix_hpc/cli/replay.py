"""`lemix replay`: the load of a recorded run under another policy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

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
    """Simulate the recorded load of a run under another policy, and print both side by side."""
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
    before = figures(records, summarise(records))
    after = figures(simulated.records, simulated.summary)
    if as_json:
        typer.echo(json.dumps({"recorded": before, "replayed": after}))
        return
    _print(before, after, (records.facts.policy, records.facts.engine), simulated.records.facts.policy)


def _print(before: Figures, after: Figures, recorded: tuple[str, str], placement: str) -> None:
    from rich import box
    from rich.table import Table

    from lemix_hpc.cli.show import print_wide
    from lemix_hpc.report.table import ABSENT, number

    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
    table.add_column("")
    for name in (f"{recorded[0]}, {recorded[1]}", f"{placement}, simulated", "difference", "in percent"):
        table.add_column(name, justify="right")
    for name, old in before.items():
        new = after[name]
        if old is None and new is None:
            continue
        cells = [ABSENT, ABSENT]
        if old is not None and new is not None:
            difference = new - old
            cells = [
                f"{'+' if difference > 0 else ''}{number(difference)}",
                f"{difference / old:+.1%}" if old else ABSENT,
            ]
        table.add_row(name, number(old), number(new), *cells)
    print_wide(table)
