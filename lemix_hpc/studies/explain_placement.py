"""Why a task of a recorded run went where it went: its scheduler is told the same again, up to the decision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.policy.events import Decision, GroupOffered, Refuse, RequestArrived
from lemix_hpc.policy.explain import Hold, NodeForecast, fed_to, hold, request_forecasts, training_forecasts
from lemix_hpc.policy.scheduler import Scheduler
from lemix_hpc.records.event_log import EVENTS, read_events
from lemix_hpc.records.reader import directory_at, read_facts, stream_run
from lemix_hpc.records.schema import ServedTask, TaskRecord, TrainedTask
from lemix_hpc.run_setup.recollection import started_with
from lemix_hpc.run_setup.scheduler_setup import make_scheduler
from lemix_hpc.studies.recorded_run import believed_hardware


@dataclass(frozen=True)
class Explained:
    """A decision. `chosen_at`: when the node was chosen, of training for its whole group; `held`: why training did not go
    when it was eligible; `limit`: what the policy wants responses to keep to [s]."""

    task: TaskRecord
    decision: Decision
    chosen_at: float
    forecasts: list[NodeForecast]
    held: Hold | None
    limit: float


def explain(run_dir: Path, recipe: Recipe, name: str) -> Explained:
    """Explain the placement of the task with this id or number. Raises UserError where the records are missing, or do not
    lead to the decision that was recorded."""
    task = find_task(stream_run(run_dir).tasks(), name)
    if task.number is None:
        raise UserError(f"{name} was rejected before it reached the policy: it is too long for the model")
    # Every attempt has a scheduler of its own, with what was known when it started.
    placed = task.placed if task.placed is not None else task.arrival if isinstance(task, ServedTask) else task.eligible
    run_dir = directory_at(run_dir, placed)
    hardware, facts, memory = believed_hardware(run_dir, recipe), read_facts(run_dir), started_with(run_dir)

    def scheduler() -> Scheduler:
        end = math.inf if facts.refuses_after_s is None else facts.refuses_after_s
        pace = facts.pace_s
        made = make_scheduler(recipe, hardware, facts.t0_s, facts.overhead_s, end, **pace)
        if memory is not None:
            made.recall(memory)
        return made

    number, again = task.number, scheduler()
    if isinstance(task, ServedTask):
        found = _request(run_dir, again, task, number)
    else:
        found = _training(run_dir, scheduler, task, number)
    _check(found, task, run_dir)
    return found


def find_task(tasks: Iterable[TaskRecord], name: str) -> TaskRecord:
    some: list[str] = []
    for task in tasks:
        if task.id == name or str(task.number) == name:
            return task
        some[1:] = [task.id]
    such = " and ".join(some) or "r0, but it has none at all"
    raise UserError(f"{name}: tasks.jsonl has no task of this id or number; ids are such as {such}")


def _request(run_dir: Path, scheduler: Scheduler, task: ServedTask, number: int) -> Explained:
    for event in read_events(run_dir):
        if isinstance(event, RequestArrived) and event.task == number:
            forecasts = request_forecasts(scheduler, event)
            decision = _of(number, scheduler.handle(event))
            if decision is not None:
                return Explained(task, decision, event.time, forecasts, None, scheduler.rules.limit)
        scheduler.handle(event)
    raise _not_led(run_dir, task, "has no arrival of it")


def _training(run_dir: Path, fresh: Callable[[], Scheduler], task: TrainedTask, number: int) -> Explained:
    opened, group = _opening(run_dir, fresh(), task, number)
    scheduler, forecasts, chosen_at, held = fresh(), list[NodeForecast](), math.nan, None
    for position, event in enumerate(read_events(run_dir)):
        if position == opened:
            length = group.lengths[0]
            forecasts, chosen_at = training_forecasts(scheduler, event, group.rows, length), event.time
        decision = _of(number, scheduler.handle(event))
        if decision is not None:
            return Explained(task, decision, chosen_at, forecasts, held, scheduler.rules.limit)
        if position >= opened and held is None and event.time >= task.eligible:
            node = fed_to(scheduler, number)
            held = None if node is None else hold(scheduler, node, number)
    raise _not_led(run_dir, task, "does not lead to its placement")


def _opening(run_dir: Path, scheduler: Scheduler, task: TrainedTask, number: int) -> tuple[int, GroupOffered]:
    """At which event the node of a micro-batch's group was chosen, and the group."""
    group = None
    for position, event in enumerate(read_events(run_dir)):
        decisions = scheduler.handle(event)
        if isinstance(event, GroupOffered) and number in event.tasks:
            group = event
        # A group of one that went at once is not open any more when it is looked at.
        if group is not None and (
            fed_to(scheduler, number) is not None or any(decision.task in group.tasks for decision in decisions)
        ):
            return position, group
    raise _not_led(run_dir, task, "does not lead to its placement")


def _of(number: int, decisions: list[Decision]) -> Decision | None:
    return next((decision for decision in decisions if decision.task == number), None)


def _check(found: Explained, task: TaskRecord, run_dir: Path) -> None:
    """The decision must be the recorded one: anything else would explain another run."""
    decision = found.decision
    if isinstance(decision, Refuse):
        if task.node is not None:
            raise _not_led(run_dir, task, f"leads to its refusal, and tasks.jsonl has it on node {task.node}")
        return
    if decision.node != task.node:
        recorded = "nowhere" if task.node is None else f"on node {task.node}"
        raise _not_led(run_dir, task, f"leads to node {decision.node}, and tasks.jsonl has it {recorded}")
    predicted = task.predicted_response_s if isinstance(task, ServedTask) else None
    if predicted is not None and not math.isclose(decision.response, predicted, rel_tol=1e-9, abs_tol=1e-9):
        raise _not_led(
            run_dir, task, f"leads to a forecast of {decision.response:.6g} s, and tasks.jsonl has {predicted:.6g} s"
        )


def _not_led(run_dir: Path, task: TaskRecord, what: str) -> UserError:
    return UserError(
        f"{task.id}: {run_dir / EVENTS} {what}. The files are not those of one run, or another version of lemix-hpc wrote "
        "them; a new run can be explained."
    )
