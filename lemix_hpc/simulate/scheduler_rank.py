"""The scheduler's rank, as `lemix_hpc.runtime.scheduler.loop`: it tells the policy what happens, and carries out what that decides."""

from __future__ import annotations

from lemix_hpc.policy import transitions
from lemix_hpc.policy.execution_rules import BACKWARD, SERVE
from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.policy.rules import Rules
from lemix_hpc.policy.state import State, full
from lemix_hpc.simulate.cluster_state import Setting, World, append, log, touch
from lemix_hpc.simulate.dtypes import (
    ARRIVED,
    CLOSED,
    ENDED,
    FINISHED,
    FORWARDS,
    NONE,
    OFFERED,
    PASSED_STAGE,
    REFUSED,
    TICKED,
)
from lemix_hpc.simulate.pairing_heap import bring_follower, push

GOING, DONE, STUCK, NEED_ROOM, NEED_SLOTS, NEED_GROUPS, MEASURE = range(7)
"""What the loop asks of its caller: nothing, to make room for spans and events or in the policy's state, for more groups of
micro-batches, or to tell the policy how long the pass took that ends next."""


@compiled
def arrive(world: World, setting: Setting, state: State, rules: Rules, task: int) -> None:
    """Let a request in."""
    request = world.requests[task]
    log(world, setting, ARRIVED, NONE, NONE, task, 0.0, False, False)
    transitions.request_arrived(state, rules, world.run[0].now, task, request.prompt, request.output)
    _carry_out(world, setting, state)


@compiled
def supply_training(world: World, setting: Setting, state: State, rules: Rules) -> int:
    """Offer groups ahead of the policy's need, one for every node. What is asked of the caller.

    Training without an end ends with serving, and any training when the policy refuses some: the allocation ends.
    """
    run = world.run[0]
    while not run.closed:
        if run.refused or (setting.endless and run.unserved == 0):
            run.closed = True
            log(world, setting, CLOSED, NONE, NONE, NONE, 0.0, False, False)
            transitions.training_closed(state)
            break
        if not setting.endless and run.next_group == world.groups.size:
            run.closed = run.offered == 0
            break
        if run.offered >= setting.nodes:
            break
        if run.next_group == world.groups.size:
            return NEED_GROUPS
        first, size = world.groups[run.next_group].first, world.groups[run.next_group].size
        task = world.requests.size + first
        if full(state, task + size, size):
            return NEED_SLOTS
        log(world, setting, OFFERED, NONE, NONE, run.next_group, 0.0, False, False)
        run.next_group += 1
        run.offered += 1
        transitions.group_offered(state, rules, run.now, task, world.lengths[first : first + size], setting.rows)
        _carry_out(world, setting, state)
    return GOING


@inlined
def tell_finished(world: World, setting: Setting, state: State, rules: Rules, node: int, task: int) -> None:
    """A task has its outcome."""
    now, output = world.run[0].now, 0
    if task < world.requests.size:
        world.run[0].unserved -= 1
        output = world.requests[task].produced
    else:
        micro_batch = world.micro_batches[task - world.requests.size]
        micro_batch.outcome, micro_batch.finished = FINISHED, now
    log(world, setting, ENDED, node, NONE, task, 0.0, False, False)
    transitions.task_finished(state, rules, now, node, task, output)
    _carry_out(world, setting, state)


@inlined
def tell_passed(
    world: World, setting: Setting, state: State, rules: Rules, node: int, stage: int, task: int, kind: int
) -> None:
    """A stage has run a task's pass; of a request that generates all passes count as one, which ends with the last."""
    now, start, last = world.run[0].now, world.stages[node * setting.stages + stage].start, True
    if kind == SERVE:
        passed = world.passed[task, stage]
        if passed.passes == 0:
            passed.start = start
        passed.passes += 1
        start, last = passed.start, passed.passes >= world.requests[task].output
    log(world, setting, PASSED_STAGE, node, stage, task, start, kind == BACKWARD, last)
    transitions.stage_finished(state, rules, now, node, stage, task, start, now, kind == BACKWARD, last)
    _carry_out(world, setting, state)


@compiled
def look_again(world: World, setting: Setting, state: State, rules: Rules) -> None:
    """The policy wants to look at held training again."""
    log(world, setting, TICKED, NONE, NONE, NONE, 0.0, False, False)
    transitions.tick(state, rules, world.run[0].now)
    _carry_out(world, setting, state)


@inlined
def _carry_out(world: World, setting: Setting, state: State) -> None:
    """Send decided tasks to their nodes."""
    counters = state.counters[0]
    for position in range(counters.decided):
        task = state.decided[position]
        slot = state.slot_of[task]
        if task < world.requests.size:
            _place_request(world, state, task, slot)
        else:
            _place_micro_batch(world, setting, state, task - world.requests.size, slot)
    counters.decided = 0


@inlined
def _place_request(world: World, state: State, task: int, slot: int) -> None:
    run, request = world.run[0], world.requests[task]
    if slot == NONE:
        request.outcome = REFUSED
        run.unserved -= 1
        if request.follower != NONE:
            bring_follower(world, request.follower, max(run.now, world.requests[request.follower].earliest))
        return
    node = state.slots[slot].node
    request.node, request.key, request.predicted = node, state.slots[slot].key, state.slots[slot].predicted
    request.placed, request.length = run.now, request.prompt
    leader = world.nodes[node]
    leader.waiting = push(world.requests, leader.waiting, task)
    touch(world, node)


@inlined
def _place_micro_batch(world: World, setting: Setting, state: State, number: int, slot: int) -> None:
    run, micro_batch = world.run[0], world.micro_batches[number]
    group = world.groups[micro_batch.group]
    if slot == NONE:
        micro_batch.outcome, run.refused = REFUSED, True
        if number == group.first:
            run.offered -= 1
        return
    if not group.begun:
        group.begun = True
        run.offered -= 1
        run.begun += 1
    node = state.slots[slot].node
    micro_batch.node, micro_batch.eligible, micro_batch.placed = node, state.slots[slot].eligible, run.now
    micro_batch.since = run.now
    append(world.queues[3 * node * setting.stages + FORWARDS], world.micro_batches, number)
    touch(world, node)
