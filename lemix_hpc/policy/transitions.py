"""What the scheduler does when something happens: compiled, for the Python `Scheduler` and the simulator's loop alike.

Tasks are numbered 0, 1, 2, ...; the micro-batches of a group one after the other. Decided tasks are in `state.decided`
afterwards: each has a slot with its node, or none if it is refused. The caller sets `counters[0].decided` to 0.
"""

from __future__ import annotations

import math

from lemix_hpc.policy.estimates import note_assigned, note_output, note_overhead
from lemix_hpc.policy.forecast import assign, expect, forget, observe, place_of_request
from lemix_hpc.policy.jit import compiled
from lemix_hpc.policy.placement import choose_for_request, expected_output, order_key, request_row
from lemix_hpc.policy.release import admit, offer, open_groups, passed
from lemix_hpc.policy.rules import Rules
from lemix_hpc.policy.state import NONE, Ints, State, decide, return_slot, take_slot


@compiled
def request_arrived(state: State, rules: Rules, now: float, task: int, prompt: int, output: int) -> None:
    """Place a request of `prompt` tokens that asks for `output` new ones (0: its prompt is only scored)."""
    slots, nodes = state.slots, state.nodes
    wanted = expected_output(state, rules, output)
    node = choose_for_request(state, rules, now, prompt, wanted)
    slot = take_slot(state, task)
    alone = request_row(state, rules, node, prompt, wanted, state.forward[slot])
    state.counters[0].sequence += 1
    slots[slot].training, slots[slot].release = False, now
    slots[slot].sequence = 0 if rules.serving_first else state.counters[0].sequence
    slots[slot].prompt, slots[slot].output, slots[slot].rows = prompt, output, 1
    slots[slot].key = order_key(rules, now, state.forward[slot].sum())
    behind = place_of_request(state, node, slots[slot].key, now, rules.serving_first)
    begin, end, _ = expect(state, node, behind, slots[slot].sequence, now, state.forward[slot])
    end = max(end, begin + alone) + state.counters[0].overhead * max(1, wanted)
    if end > rules.end:
        return_slot(state, slot)
        decide(state, task)
        return
    if rules.postpone > 0.0 and end - now > rules.limit:
        # It has nothing to lose, and those behind it have.
        slots[slot].key += rules.postpone
        behind = place_of_request(state, node, slots[slot].key, now, rules.serving_first)
    assign(state, node, slot, behind)
    slots[slot].predicted = max(state.paths[slot, -1].fe, state.paths[slot, 0].fb + alone) - now
    known = rules.oracle or output <= 1
    slots[slot].alone = alone if known and nodes[node].requests == 0 else 0.0
    slots[slot].predicted += state.counters[0].overhead * max(1, wanted)
    note_assigned(state, rules, node, slot, now)
    nodes[node].requests += 1
    nodes[node].generating += output > 1
    decide(state, task)


@compiled
def group_offered(state: State, rules: Rules, now: float, first: int, lengths: Ints, rows: int) -> None:
    """Micro-batches of one optimizer step, of `rows` sequences of these lengths, may be trained on."""
    slots = state.slots
    for position in range(lengths.size):
        slot = take_slot(state, first + position)
        slots[slot].training, slots[slot].key, slots[slot].alone = True, 0.0, 0.0
        slots[slot].prompt, slots[slot].output, slots[slot].rows = lengths[position], 0, rows
        slots[slot].group_size = lengths.size
    offer(state, first)
    open_groups(state, rules, now)


@compiled
def training_closed(state: State) -> None:
    """No more training: drop groups that were offered and not begun."""
    counters = state.counters
    while counters[0].offered_first < counters[0].offered_end:
        first = state.offered[counters[0].offered_first % state.offered.size]
        counters[0].offered_first += 1
        for task in range(first, first + state.slots[state.slot_of[first]].group_size):
            return_slot(state, state.slot_of[task])


@compiled
def stage_finished(
    state: State,
    rules: Rules,
    now: float,
    node: int,
    stage: int,
    task: int,
    start: float,
    end: float,
    backward: bool,
    last: bool,
) -> None:
    """A stage has run a task's forward or backward; for generated tokens `last` is set with the last one's pass."""
    if last:
        slot = state.slot_of[task]
        observe(state, node, stage, slot, start, end, backward)
        if rules.learns and slot != NONE and stage == state.paths.shape[1] - 1:
            note_overhead(state, slot, end)
        if slot == NONE or state.slots[slot].training:
            passed(state, rules, now, node, stage, task, backward)
            open_groups(state, rules, now)
    if state.nodes[node].held > 0:
        admit(state, rules, now, node)


@compiled
def task_finished(state: State, rules: Rules, now: float, node: int, task: int, output: int) -> None:
    """A task has its outcome, and produced `output` tokens. An unknown one is ignored."""
    slot = state.slot_of[task]
    if slot == NONE:
        return
    slots, nodes = state.slots, state.nodes
    forget(state, slot)
    if not slots[slot].training:
        nodes[node].requests -= 1
        nodes[node].generating -= slots[slot].output > 1
        if output > 0:
            note_output(state, output)
    return_slot(state, slot)
    if nodes[node].held > 0:
        admit(state, rules, now, node)


@compiled
def tick(state: State, rules: Rules, now: float) -> None:
    """Look at held training again, if something has been held long enough."""
    if now < state.counters[0].tick_at:
        return
    for node in range(state.nodes.size):
        if state.nodes[node].held > 0:
            admit(state, rules, now, node)


@compiled
def next_tick(state: State) -> float:
    """When to call `tick` [s], inf if there is no need."""
    at: float = state.counters[0].tick_at
    return at if state.counters[0].holding > 0 else math.inf
