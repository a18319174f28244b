"""What the scheduler saw when it chose a node: the forecast for every node, without a change of its state."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lemix_hpc.policy.candidates import (
    Candidate,
    expected_output,
    request_candidate,
    request_row,
    training_candidate,
    training_rows,
)
from lemix_hpc.policy.events import Event, GroupOffered, RequestArrived
from lemix_hpc.policy.placement_rules import LEMIX_PAPER, length_consistency, length_density, score
from lemix_hpc.policy.release import in_the_way, smallest_slack
from lemix_hpc.policy.scheduler import Scheduler
from lemix_hpc.policy.state import NONE, State
from lemix_hpc.policy.task_slots import slot_of


@dataclass(frozen=True, slots=True)
class NodeForecast:
    """What a node had to offer a task: seconds, but for the score and the length consistency.

    `response`: from release to the end of the last forward, of which `wait` is not work on the task; `completion`: when the
    task is through; `idleness`: stage time that it leaves idle in front of itself. The highest score wins.
    """

    node: int
    wait: float
    response: float
    completion: float
    idleness: float
    length_consistency: float
    score: float


@dataclass(frozen=True, slots=True)
class Hold:
    """Why training was held: by how much the most pressed request of its node was expected to meet its limit, and how long
    the micro-batch can keep requests waiting; seconds."""

    slack: float
    in_the_way: float


def request_forecasts(scheduler: Scheduler, event: RequestArrived) -> list[NodeForecast]:
    """The forecasts of a request on every node that serves, before the scheduler is told of it."""
    state, rules = scheduler.state, scheduler.rules
    row = np.zeros(state.forward.shape[1])
    output = expected_output(state, rules, event.output)
    if event.patient:
        return [_batch_work(scheduler, node) for node in range(rules.servers)]
    found = []
    for node in range(rules.servers):
        alone = request_row(state, rules, node, event.prompt, output, row)
        candidate = request_candidate(state, rules, node, event.time, alone, event.prompt, row)
        found.append(_forecast(scheduler, node, candidate))
    return found


def _batch_work(scheduler: Scheduler, node: int) -> NodeForecast:
    """What a node has to offer a batch request, which goes where least work of such requests waits."""
    waiting = 1e-9 * float(scheduler.state.nodes[node]["batch_work"])
    return NodeForecast(node, waiting, waiting, waiting, 0.0, 0.0, -waiting)


def training_forecasts(scheduler: Scheduler, event: Event, rows: int, length: int) -> list[NodeForecast]:
    """The forecasts of a group's first micro-batch on every node that it could have gone to, after what the event tells of
    others and before the group was opened. The scheduler was not told of the event yet."""
    if isinstance(event, GroupOffered):
        return list(_training(scheduler, event.time, rows, length))
    informed = _copy_of(scheduler)
    # Without a lane the event opens no group.
    informed.state.counters["lanes"] -= informed.state.nodes.size + 1
    informed.handle(event)
    return list(_training(informed, event.time, rows, length))


def fed_to(scheduler: Scheduler, task: int) -> int | None:
    """The node that the micro-batch's group was opened on, None before that."""
    nodes = scheduler.state.nodes
    first = nodes["open_first"]
    found = np.flatnonzero((first != NONE) & (first <= task) & (task < first + nodes["open_size"]))
    return int(found[0]) if found.size else None


def hold(scheduler: Scheduler, node: int, task: int) -> Hold:
    """What a micro-batch that its node holds waits for."""
    state, rules = scheduler.state, scheduler.rules
    slot = slot_of(state, task)
    training_rows(
        state, node, state.slots[slot]["rows"], state.slots[slot]["prompt"], state.forward[slot], state.backward[slot]
    )
    return Hold(float(smallest_slack(state, rules, node)), float(in_the_way(state, rules, slot)))


def _training(scheduler: Scheduler, now: float, rows: int, length: int) -> Iterator[NodeForecast]:
    state, rules = scheduler.state, scheduler.rules
    forward, backward = np.zeros((2, state.forward.shape[1]))
    for node in range(rules.trainers, state.nodes.size):
        if state.nodes[node]["open_first"] == NONE:
            training_rows(state, node, rows, length, forward, backward)
            candidate = training_candidate(state, node, now, rows * length, forward, backward)
            yield _forecast(scheduler, node, candidate)


def _forecast(scheduler: Scheduler, node: int, found: Candidate) -> NodeForecast:
    state, rules = scheduler.state, scheduler.rules
    consistency = length_density if rules.placement == LEMIX_PAPER else length_consistency
    return NodeForecast(
        node=node,
        wait=found.response - found.alone,
        response=found.response,
        completion=found.completion,
        idleness=found.idleness,
        length_consistency=float(consistency(state, node, found.length)),
        score=float(score(state, rules, node, found)),
    )


def _copy_of(scheduler: Scheduler) -> Scheduler:
    """A scheduler with a state of its own. Stage times are shared: events that place tasks do not change them."""
    other = copy.copy(scheduler)
    state = scheduler.state
    other.state = State._make([state.times, *(array.copy() for array in state[1:])])
    return other
