"""The event loop: what happens next, until everything is done.

What happens at the same time is taken in a fixed order: passes that end, by stage; memory that is looked at again, by
node; requests that arrive, by number; the policy's tick; groups that are offered. Messages take no time: only when all
of that is known do leaders form batches, and stages pick what to run next.
"""

from __future__ import annotations

import math

from lemix_hpc.policy.execution_rules import BACKWARD, SERVE
from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.policy.rules import Rules
from lemix_hpc.policy.state import State, full
from lemix_hpc.policy.transitions import next_tick
from lemix_hpc.simulate.cluster_state import Setting, World, add_span, touch
from lemix_hpc.simulate.dtypes import FINISHED, NONE
from lemix_hpc.simulate.leader import free_batch, supply_first_stage, take_results
from lemix_hpc.simulate.memory import move, set_wake
from lemix_hpc.simulate.pairing_heap import pop
from lemix_hpc.simulate.scheduler_rank import (
    DONE,
    GOING,
    MEASURE,
    NEED_ROOM,
    NEED_SLOTS,
    STUCK,
    arrive,
    look_again,
    supply_training,
    tell_finished,
    tell_passed,
)
from lemix_hpc.simulate.stage import backward_done, come, end_stretch, forward_done, settle
from lemix_hpc.simulate.tournament_tree import earliest, set_timer

RESOLUTION = 1e-9
"""The policy's ticks come at most once in so many seconds, whatever the rounding of their times."""


@compiled
def advance(world: World, setting: Setting, state: State, rules: Rules) -> int:
    """Run on until everything is done or the caller has to make room; then call again. What is asked of the caller."""
    run, timers = world.run[0], world.timers
    room = 2 * setting.max_requests + (setting.stages + 4) * setting.stages + setting.nodes
    while True:
        at = earliest(timers)
        ends = timers.due[at]
        request = _next_arrival(world)
        arrives = math.inf if request == NONE else world.requests[request].arrival
        ticks = max(next_tick(state), run.ticked + RESOLUTION)
        wakes = _next_wake(world, setting)
        time = min(ends, arrives, ticks, wakes)
        if world.spans.size - run.spans < room or (setting.logs and world.events.size - run.events < room):
            return NEED_ROOM
        if time > run.now:
            asked = supply_training(world, setting, state, rules)
            if asked != GOING:
                return asked
            if run.changed > 0:
                node = world.changed[run.first_changed]
                run.first_changed = (run.first_changed + 1) % setting.nodes
                run.changed -= 1
                _settle_node(world, setting, node)
                continue
            if time == math.inf or _over(world):
                return DONE if _over(world) else STUCK
            run.now = time
        if ends <= run.now:
            if setting.measures and not run.measured and world.stages[at].planned == world.stages[at].left:
                run.measured = True
                return MEASURE
            run.measured = False
            _end(world, setting, state, rules, at)
        elif wakes <= run.now:
            _wake(world)
        elif arrives <= run.now:
            if full(state, request + 1, 1):
                return NEED_SLOTS
            _take_arrival(world, request)
            arrive(world, setting, state, rules, request)
        else:
            run.ticked = run.now
            look_again(world, setting, state, rules)


@inlined
def _over(world: World) -> bool:
    """Whether everything is done."""
    run = world.run[0]
    return bool(run.unserved == 0 and run.closed and run.begun == 0)


@inlined
def _next_wake(world: World, setting: Setting) -> float:
    """When the next node has to look at its memory again."""
    if not setting.limited:
        return math.inf
    wakes = world.memory.wakes
    time: float = wakes.due[earliest(wakes)]
    return time


@compiled
def _wake(world: World) -> None:
    wakes = world.memory.wakes
    node = earliest(wakes)
    set_timer(wakes, node, math.inf)
    touch(world, node)


@inlined
def _next_arrival(world: World) -> int:
    """The request that arrives next: from the workload, or a later turn that an answer has called for."""
    run, requests = world.run[0], world.requests
    listed: int = run.next_arrival
    due: int = run.due
    if listed == run.listed:
        return due
    return due if due != NONE and requests[due].arrival < requests[listed].arrival else listed


@inlined
def _take_arrival(world: World, request: int) -> None:
    run = world.run[0]
    if request == run.due:
        run.due = pop(world.requests, request)
    else:
        run.next_arrival += 1


@compiled
def _settle_node(world: World, setting: Setting, node: int) -> None:
    """Everything of this instant has come to a node."""
    world.nodes[node].changed = False
    if setting.limited:
        move(world, setting, node)
    supply_first_stage(world, setting, node)
    for stage in range(setting.stages):
        if settle(world, setting, node, stage):
            touch(world, node)
    if setting.limited:
        set_wake(world, setting, node)


@inlined
def _end(world: World, setting: Setting, state: State, rules: Rules, at: int) -> None:
    """A stretch of work ends on a stage."""
    node, stage = at // setting.stages, at % setting.stages
    work = world.stages[at]
    kind, item = work.kind, work.item
    touch(world, node)
    _record(world, setting, node, stage)
    if not end_stretch(world, setting, at):
        return
    if kind == SERVE:
        _batch_done(world, setting, state, rules, node, stage, item)
        return
    if kind == BACKWARD:
        backward_done(world, setting, node, stage, item)
    else:
        forward_done(world, setting, node, stage, item)
    task = world.requests.size + item
    tell_passed(world, setting, state, rules, node, stage, task, kind)
    if kind == BACKWARD and stage == 0:
        tell_finished(world, setting, state, rules, node, task)


@compiled
def _batch_done(world: World, setting: Setting, state: State, rules: Rules, node: int, stage: int, number: int) -> None:
    """The scheduler hears of the pass before it hears of its outcome."""
    last, members = stage == setting.stages - 1, world.members[number]
    size = world.batches[number].size
    if stage == 0:
        world.nodes[node].at_first_stage -= 1
    for position in range(size):
        tell_passed(world, setting, state, rules, node, stage, members[position], SERVE)
    if not last:
        come(world, number, node * setting.stages + stage + 1)
        return
    take_results(world, setting, node, number)
    for position in range(size):
        if world.requests[members[position]].outcome == FINISHED:
            tell_finished(world, setting, state, rules, node, members[position])
    free_batch(world, node, number)


@compiled
def _record(world: World, setting: Setting, node: int, stage: int) -> None:
    """The spans of the stretch that ends now: one for each request of a batch."""
    work, now = world.stages[node * setting.stages + stage], world.run[0].now
    size = world.batches[work.item].size if work.kind == SERVE else 1
    for position in range(size):
        task, batch = world.requests.size + work.item, NONE
        if work.kind == SERVE:
            task, batch = world.members[work.item, position], world.batches[work.item].number
        add_span(world, node, stage, task, work.kind, work.start, now, work.version, batch)
