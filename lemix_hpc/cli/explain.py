"""`lemix explain`: why a task of a run went where it went."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lemix_hpc.cli.run import Json, RunName

if TYPE_CHECKING:
    from rich.table import Table

    from lemix_hpc.config.recipe import Recipe
    from lemix_hpc.policy.explain import NodeForecast
    from lemix_hpc.records.schema import ServedTask
    from lemix_hpc.studies.explain_placement import Explained


def explain(
    run: RunName,
    task: Annotated[str, typer.Argument(metavar="TASK", help="Id or number of a request or micro-batch.")],
    nodes: Annotated[int, typer.Option(min=1, help="How many nodes to show, the best first.")] = 16,
    as_json: Json = False,
) -> None:
    """Show which node a task got, and what was forecast for it on each node at that time."""
    from lemix_hpc.cli.show import print_wide
    from lemix_hpc.launch.registry import find_run
    from lemix_hpc.studies.explain_placement import explain as explained
    from lemix_hpc.studies.recorded_run import recorded_recipe

    found = find_run(run)
    recipe = recorded_recipe(found.recipe)
    answer = explained(found.path, recipe, task)
    if as_json:
        typer.echo(json.dumps(_plain(answer, nodes)))
        return
    for line in _story(answer, recipe):
        typer.echo(line)
    if answer.forecasts:
        print_wide(_table(answer, nodes))


def _plain(answer: Explained, nodes: int) -> dict[str, Any]:
    """Forecasts of the best nodes; times in seconds. `node`: the one that was chosen, null if the task was refused."""
    import msgspec

    return {
        "task": msgspec.to_builtins(answer.task),
        "node": _chosen(answer),
        "chosen_at": answer.chosen_at,
        "limit": answer.limit if math.isfinite(answer.limit) else None,
        "held": msgspec.to_builtins(answer.held),
        "forecasts": [msgspec.to_builtins(forecast) for forecast in _best(answer, nodes)],
    }


def _chosen(answer: Explained) -> int | None:
    from lemix_hpc.policy.events import Place

    return answer.decision.node if isinstance(answer.decision, Place) else None


def _best(answer: Explained, nodes: int) -> list[NodeForecast]:
    """And the chosen one, wherever it stands: some placements do not go by the score alone."""
    best = sorted(answer.forecasts, key=lambda forecast: -forecast.score)
    return best[:nodes] + [forecast for forecast in best[nodes:] if forecast.node == _chosen(answer)]


def _story(answer: Explained, recipe: Recipe) -> Iterator[str]:
    from lemix_hpc.policy.events import Refuse
    from lemix_hpc.policy.placements import PLACEMENTS
    from lemix_hpc.records.schema import ServedTask
    from lemix_hpc.run_setup.scheduler_setup import placement_of

    task, decision, placement = answer.task, answer.decision, placement_of(recipe)
    if isinstance(task, ServedTask):
        yield f"{task.id}: a request of {task.prompt_tokens} tokens, arrived at {task.arrival:.4f} s"
    else:
        yield f"{task.id}: a training micro-batch of {task.tokens} tokens"
        yield f"Its accumulation group got its node at {answer.chosen_at:.4f} s, when the first micro-batch was placed."
    if isinstance(decision, Refuse):
        yield f"{placement} refused it: it was expected to end too late for the allocation (policy.drain_reserve_s)."
        return
    how = "chose without forecasts" if PLACEMENTS[placement].takes_turns else "chose"
    yield f"{placement} {how}: node {decision.node}"
    if isinstance(task, ServedTask):
        yield from _response(answer, decision.response, task)
    elif task.placed is not None:
        yield from _held(answer, recipe, task.placed - task.eligible)


def _response(answer: Explained, predicted: float, task: ServedTask) -> Iterator[str]:
    limit = "within" if predicted <= answer.limit else "beyond"
    yield f"Predicted response: {1e3 * predicted:.1f} ms, {limit} the limit of {1e3 * answer.limit:.1f} ms"
    if task.outcome != "finished" or task.finished is None:
        yield f"Outcome: {task.outcome}"
        return
    real = task.finished - task.arrival
    yield f"Actual response: {1e3 * real:.1f} ms ({1e3 * (real - predicted):+.1f} ms)"


def _held(answer: Explained, recipe: Recipe, waited: float) -> Iterator[str]:
    from lemix_hpc.records.schema import TrainedTask

    assert isinstance(answer.task, TrainedTask), "requests are not held"
    policy, held = recipe.policy, answer.held
    yield f"Released at {answer.task.eligible:.4f} s, sent to the node {waited:.4f} s later"
    if held is None:
        return
    if policy.admission == "slack":
        yield (
            f"It was held: it can delay requests by {1e3 * held.in_the_way:.2f} ms, and the most urgent request on its node "
            f"was expected to meet its limit with only {1e3 * held.slack:.2f} ms to spare."
        )
    else:
        yield "It was held: its own response was expected to exceed the limit (policy.admission: paper)."
    if waited >= policy.max_hold_s:
        yield f"It was sent after the longest hold, policy.max_hold_s = {policy.max_hold_s:g} s."


def _table(answer: Explained, nodes: int) -> Table:
    from rich import box
    from rich.table import Table

    chosen = _chosen(answer)
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
    for name in ("", "node", "wait ms", "response ms", "completion s", "idleness ms", "lengths", "score"):
        table.add_column(name, justify="right")
    for one in _best(answer, nodes):
        times = (
            f"{1e3 * max(0.0, one.wait):.2f}",
            f"{1e3 * one.response:.2f}",
            f"{one.completion:.4f}",
            f"{1e3 * one.idleness:.2f}",
        )
        mark = ">" if one.node == chosen else ""
        table.add_row(mark, str(one.node), *times, f"{one.length_consistency:.3g}", f"{one.score:.6g}")
    return table
