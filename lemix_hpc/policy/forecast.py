"""The execution-path forecast (LeMix, Algorithm 1, with the repairs of docs/policy.md), kept incrementally for every node.

For a task released at r, with pfe_s the latest forward end expected on stage s among the tasks that run before it:

    fb_0 = max(r, pfe_0);   fb_s = max(fe_{s-1}, pfe_s);   fe_s = fb_s + F_s
    for every backward [bb_s, be_s] expected there and not yet run, while fe_s > bb_s:
        fb_s = max(fb_s, be_s);   fe_s = fb_s + F_s                       (far dependency)
    training:  bb_{S-1} = fe_{S-1};  be_s = bb_s + B_s;  bb_{s-1} = be_s

"Before" is the order in which the node runs its tasks: the order of assignment where stages run what comes first; with
serving first, requests by their key, and behind all of them training by assignment. A request then has no training before
it, and no far dependency.

Real begins and ends replace the expected ones, a forward that has not run on a stage begins no earlier than what is known
to have ended there, and everything behind is forecast anew, as far as it moves. A backward keeps to its equation: it may
rest and resume, so that the end of other work does not say that it has not begun.
"""

from __future__ import annotations

import math

from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.policy.state import NONE, RAN_BACKWARD, RAN_FORWARD, Floats, Records, State

NOT_MOVED, MOVED, BACKWARD_MOVED = range(3)
ALL = 2**62
"""As a sequence: behind all training of the node."""


@inlined
def expect(
    state: State, node: int, behind: int, sequence: int, release: float, forward: Floats
) -> tuple[float, float, float]:
    """The path of a task that would run right behind the slot `behind` (NONE: first), and behind all training of earlier
    `sequence`: begin on the first stage, forward end on the last one, and idleness, the paper's II; seconds."""
    nodes, ready, first, idleness = state.nodes, release, release, 0.0
    behind_requests = sequence == 0 and behind == nodes[node].last_request
    for stage in range(forward.size):
        if behind_requests:
            ended = state.request_end[node, stage]
        else:
            ended = state.free_at[node, stage] if behind == NONE else state.paths[behind, stage].after
        begin, busy = max(ready, ended), 0.0
        if sequence > 0 and nodes[node].first_training != NONE:
            begin, busy = _past_backwards(state, node, sequence, stage, begin, forward[stage], ended)
        if ended > -math.inf:
            idleness += max(0.0, begin - ended - busy)
        if stage == 0:
            first = begin
        ready = begin + forward[stage]
    return first, ready, idleness


@compiled
def _past_backwards(
    state: State, node: int, sequence: int, stage: int, begin: float, duration: float, ended: float
) -> tuple[float, float]:
    """Begin of a forward that overlaps no backward of training with earlier `sequence`, and how long those keep the stage
    busy after `ended`. The least fixed point of the far dependency, whatever the order of the backwards."""
    slots, first = state.slots, state.nodes[node].first_training
    moved = True
    while moved:
        moved = False
        task = first
        while task != NONE and slots[task].sequence < sequence:
            if begin < state.paths[task, stage].be and begin + duration > state.paths[task, stage].bb:
                begin, moved = state.paths[task, stage].be, True
            task = slots[task].next_training
    busy = 0.0
    task = first
    while task != NONE and slots[task].sequence < sequence:
        begins = state.paths[task, stage].bb
        if begin + duration > begins and ended <= begins:
            busy += state.paths[task, stage].be - begins
        task = slots[task].next_training
    return begin, busy


@compiled
def assign(state: State, node: int, slot: int, behind: int) -> None:
    """Put a task right behind the slot `behind` of its node (NONE: first), and forecast it and what it moves.

    Its times, `training`, `release` and `sequence` are set.
    """
    nodes, slots = state.nodes, state.slots
    before = nodes[node].head if behind == NONE else slots[behind].next
    slots[slot].node, slots[slot].previous, slots[slot].next = node, behind, before
    if behind == NONE:
        nodes[node].head = slot
    else:
        slots[behind].next = slot
    if before == NONE:
        nodes[node].tail = slot
    else:
        slots[before].previous = slot
    if slots[slot].training:
        _chain(state, node, slot)
    elif nodes[node].last_request == behind:
        nodes[node].last_request = slot
    for stage in range(state.paths.shape[1]):
        path = state.paths[slot, stage]
        path.ran, path.fb, path.bb = 0, math.nan, math.nan
    _follow(state, node, slot, slot)
    _note_last_request(state, node)


@inlined
def _chain(state: State, node: int, slot: int) -> None:
    nodes, slots = state.nodes, state.slots
    slots[slot].next_training = NONE
    if nodes[node].first_training == NONE:
        nodes[node].first_training = slot
    else:
        slots[nodes[node].last_training].next_training = slot
    nodes[node].last_training = slot


@compiled
def _unchain(state: State, node: int, slot: int) -> None:
    nodes, slots = state.nodes, state.slots
    earlier, here = NONE, nodes[node].first_training
    while here != slot:
        earlier, here = here, slots[here].next_training
    if earlier == NONE:
        nodes[node].first_training = slots[slot].next_training
    else:
        slots[earlier].next_training = slots[slot].next_training
    if nodes[node].last_training == slot:
        nodes[node].last_training = earlier


@compiled
def observe(state: State, node: int, stage: int, slot: int, start: float, end: float, backward: bool) -> None:
    """A stage has run a task's forward or backward from `start` to `end`; later forecasts follow from it.

    The task may be finished and forgotten already (`slot` NONE): reports of different stages overtake one another, and the
    stage was busy all the same.
    """
    nodes = state.nodes
    state.free_at[node, stage] = max(state.free_at[node, stage], end)
    at_least = slot
    if slot != NONE and backward:
        state.paths[slot, stage].ran |= RAN_BACKWARD
        state.paths[slot, stage].bb, state.paths[slot, stage].be = start, end
        at_least = nodes[node].tail
    elif slot != NONE:
        state.paths[slot, stage].ran |= RAN_FORWARD
        state.paths[slot, stage].fb, state.paths[slot, stage].fe = start, end
    # What ended is a bound for everything on the stage that has not run, from the first task on.
    _follow(state, node, nodes[node].head, at_least)
    _note_last_request(state, node)


@compiled
def observe_all(state: State, node: int, slot: int, times: Records) -> None:
    """The same of a request on all stages, (stages,), from their `start` to their `end`."""
    for stage in range(times.size):
        start, end = times[stage].start, times[stage].end
        state.free_at[node, stage] = max(state.free_at[node, stage], end)
        if slot != NONE:
            path = state.paths[slot, stage]
            path.ran |= RAN_FORWARD
            path.fb, path.fe = start, end
    _follow(state, node, state.nodes[node].head, slot)
    _note_last_request(state, node)


@compiled
def forget(state: State, slot: int) -> None:
    """A task is finished or lost: it is expected nowhere any more."""
    nodes, slots = state.nodes, state.slots
    node, before, after = slots[slot].node, slots[slot].previous, slots[slot].next
    if before == NONE:
        nodes[node].head = after
    else:
        slots[before].next = after
    if after == NONE:
        nodes[node].tail = before
    else:
        slots[after].previous = before
    if nodes[node].last_request == slot:
        nodes[node].last_request = before
    if slots[slot].training:
        _unchain(state, node, slot)
        # Far dependencies on it end wherever they are.
        _follow(state, node, after, nodes[node].tail)
    else:
        _follow(state, node, after, NONE)
    _note_last_request(state, node)


@inlined
def _note_last_request(state: State, node: int) -> None:
    """Keep what most forecasts of requests start from in one place: they are made for every node."""
    last = state.nodes[node].last_request
    state.nodes[node].seen = 0
    state.nodes[node].last_key = -math.inf if last == NONE else state.slots[last].key
    for stage in range(state.request_end.shape[1]):
        state.request_end[node, stage] = state.free_at[node, stage] if last == NONE else state.paths[last, stage].after


@compiled
def _follow(state: State, node: int, slot: int, at_least: int) -> None:
    """Forecast anew from this slot on: up to the one behind `at_least` in any case, then as long as anything moves."""
    slots = state.slots
    must = at_least != NONE
    while slot != NONE:
        moved = _forecast(state, node, slot)
        if moved == BACKWARD_MOVED:
            # Far dependencies reach over tasks that do not move.
            must, at_least = True, state.nodes[node].tail
        if not must and moved == NOT_MOVED:
            return
        # One more than `at_least`, which may have been given its real times.
        must = must and (at_least == NONE or slots[slot].previous != at_least)
        slot = slots[slot].next


@inlined
def _forecast(state: State, node: int, slot: int) -> int:
    """Forecast one task from the one before it; what that moved."""
    nodes, slots = state.nodes, state.slots
    before, sequence = slots[slot].previous, slots[slot].sequence
    far = sequence > 0 and nodes[node].first_training != NONE
    stages = state.paths.shape[1]
    ready, moved = slots[slot].release, NOT_MOVED
    for stage in range(stages):
        ended = state.free_at[node, stage] if before == NONE else state.paths[before, stage].after
        if state.paths[slot, stage].ran & RAN_FORWARD:
            ready = state.paths[slot, stage].fe
        else:
            begin = max(ready, ended)
            if far:
                begin, _ = _past_backwards(state, node, sequence, stage, begin, state.forward[slot, stage], ended)
            ready = begin + state.forward[slot, stage]
            if state.paths[slot, stage].fb != begin:
                state.paths[slot, stage].fb, state.paths[slot, stage].fe, moved = begin, ready, MOVED
        after = max(ended, ready)
        if state.paths[slot, stage].after != after:
            state.paths[slot, stage].after, moved = after, MOVED
    if slots[slot].training and _forecast_backward(state, slot, ready):
        moved = BACKWARD_MOVED
    return moved


@inlined
def _forecast_backward(state: State, slot: int, ready: float) -> bool:
    """Forecast a backward whose forward ends on the last stage at `ready`; whether that moved it."""
    moved = False
    for back in range(state.paths.shape[1]):
        stage = state.paths.shape[1] - 1 - back
        if not state.paths[slot, stage].ran & RAN_BACKWARD:
            end = ready + state.backward[slot, stage]
            if state.paths[slot, stage].bb != ready or state.paths[slot, stage].be != end:
                state.paths[slot, stage].bb, state.paths[slot, stage].be, moved = ready, end, True
        ready = state.paths[slot, stage].be
    return moved
