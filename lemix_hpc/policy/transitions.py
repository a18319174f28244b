"""What the scheduler does when something happens: compiled, for the Python `Scheduler` and the simulator's loop alike.

Tasks are numbered 0, 1, 2, ...; the micro-batches of a group one after the other. Decided tasks are in `state.decided`
afterwards: each with its slot, which has its node, or NONE if it is refused. The caller sets `counters[0].decided` to 0.
"""

from __future__ import annotations

import math
from typing import Any

from lemix_hpc.policy import classes
from lemix_hpc.policy.candidates import batch_of, expected_output, order_key, request_candidate, request_row
from lemix_hpc.policy.decode_load import note_pass, note_placed
from lemix_hpc.policy.estimates import note_assigned, note_output, note_overhead
from lemix_hpc.policy.event_records import ARRIVED, CLOSED, ENDED, PASSED_STAGE
from lemix_hpc.policy.forecast import assign, expect, forget, observe, observe_all
from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.policy.placement_rules import PACK, filled, fills, has_room, packed, score, turn
from lemix_hpc.policy.release import admit, offer, open_groups, passed
from lemix_hpc.policy.request_places import place_of_request
from lemix_hpc.policy.rules import Rules
from lemix_hpc.policy.state import NONE, Ints, Records, State, decide
from lemix_hpc.policy.task_slots import return_slot, slot_of, take_slot
from lemix_hpc.policy.token_forecast import forecast_tokens, late_first, note_tokens

promotion = compiled(classes.promotion)


@compiled
def request_arrived(state: State, rules: Rules, now: float, task: int, prompt: int, output: int) -> None:
    """Place a request that arrives at `now` [s] with `prompt` tokens, and asks for `output` new ones (0: its prompt is only
    scored). There must be a slot free, see `task_slots.full`."""
    slots, nodes, counters = state.slots, state.nodes, state.counters

    # How long will its answer be?
    tokens = expected_output(state, rules, output)

    # Which node? Forecast it behind what waits on each, and take the one with the best score.
    node = _best_node(state, rules, now, prompt, tokens)

    # What does it take there, in which place?
    slot = take_slot(state, task)
    counters[0].sequence += 1
    slots[slot].training, slots[slot].release = False, now
    slots[slot].sequence = 0 if rules.serving_first else counters[0].sequence
    slots[slot].prompt, slots[slot].output, slots[slot].rows = prompt, output, 1
    alone = request_row(state, rules, node, prompt, tokens, state.forward[slot])
    slots[slot].key = order_key(rules, now, state.forward[slot].sum())
    behind = place_of_request(state, node, slots[slot].key, now, rules.serving_first)
    begin, end, _ = expect(state, node, behind, slots[slot].sequence, now, state.forward[slot])
    overhead = counters[0].overhead * max(1, tokens)
    end = max(end, begin + alone) + overhead
    paced = rules.tpot * max(0, tokens - 1)

    # Refuse what would outlive the allocation.
    if max(end, begin + paced) > rules.end:
        return_slot(state, slot)
        decide(state, task, NONE)
        return

    # What will be late has nothing to lose, and those behind it have: it gives way.
    if rules.postpone > 0.0 and (end - now > rules.limit or (output > 1 and late_first(state, rules, node, prompt))):
        slots[slot].key += rules.postpone
        behind = place_of_request(state, node, slots[slot].key, now, rules.serving_first)

    # Put it there, and forecast what that moves.
    assign(state, node, slot, behind)
    response = max(state.paths[slot, -1].fe, state.paths[slot, 0].fb + alone) - now + overhead
    slots[slot].predicted = max(response, state.paths[slot, 0].fb + paced - now)
    known = (rules.oracle or output <= 1) and rules.tpot == 0.0
    slots[slot].alone = alone if known and nodes[node].requests == 0 else 0.0
    note_assigned(state, rules, node, slot, now)
    if output > 1:
        forecast_tokens(state, rules, node, slot, now, prompt)
        nodes[node].generating += 1
        nodes[node].prompt_tokens += prompt
    if rules.tpot > 0.0:
        if output > 1:
            slots[slot].predicted = slots[slot].first + (tokens - 1) * slots[slot].each
        note_placed(state, rules, node, now, prompt)
    nodes[node].requests += 1
    decide(state, task, slot)


@compiled
def batch_request_arrived(state: State, rules: Rules, now: float, task: int, prompt: int, output: int) -> None:
    """Place a request of class batch, as `request_arrived` does: where least work of such requests waits, of equals on the
    first node. It fills time that is left, so that nothing is forecast behind it, nor it behind anything but those."""
    slots, nodes, counters = state.slots, state.nodes, state.counters
    node = turn(state, rules, False)
    if node == NONE:
        node = least_batch_work(state, rules)
    slot = take_slot(state, task)
    counters[0].sequence += 1
    slots[slot].training, slots[slot].patient, slots[slot].node = False, True, node
    slots[slot].release, slots[slot].alone = now, 0.0
    slots[slot].prompt, slots[slot].output, slots[slot].rows = prompt, output, 1
    request_row(state, rules, node, prompt, expected_output(state, rules, output), state.forward[slot])
    slots[slot].key = promotion(now, rules.window)
    slots[slot].predicted = 1e-9 * nodes[node].batch_work / state.forward.shape[1] + state.forward[slot].sum()
    if now + slots[slot].predicted > rules.end:
        return_slot(state, slot)
    else:
        nodes[node].batch_work += _nanoseconds(state, slot)
        note_assigned(state, rules, node, slot, now)
    decide(state, task, slot)


@inlined
def _nanoseconds(state: State, slot: int) -> int:
    """The work of a request on all stages."""
    return int(1e9 * state.forward[slot].sum())


@compiled
def least_batch_work(state: State, rules: Rules) -> int:
    """The node on which least work of batch requests waits. `pack` opens no other one for them."""
    best = 0
    for node in range(1, rules.servers):
        used = rules.placement != PACK or state.nodes[node].last_release > -math.inf
        if used and state.nodes[node].batch_work < state.nodes[best].batch_work:
            best = node
    return best


@compiled
def _best_node(state: State, rules: Rules, now: float, prompt: int, tokens: int) -> int:
    """The node that a request goes to: whose turn it is, or the one with the highest score, of equals the first."""
    node = turn(state, rules, False)
    if node != NONE:
        return node
    if fills(state, rules):
        return filled(state, rules, now, prompt)
    row, kind, alone = state.rows[0], NONE, 0.0
    best, best_score, best_response = 0, -math.inf, math.inf
    for node in range(rules.servers):
        # A row depends on the kind of the node, and with generation on the size of its batches.
        if tokens > 1 or state.times.kind_of[node] != kind:
            if state.times.kind_of[node] != kind:
                kind = state.times.kind_of[node]
                state.row_sizes[:] = 0
            size = batch_of(state, rules, node) if tokens > 1 else 1
            place = size % state.row_sizes.size
            row = state.rows[place]
            if state.row_sizes[place] != size:
                state.row_sizes[place] = size
                state.row_alone[place] = request_row(state, rules, node, prompt, tokens, row)
            alone = state.row_alone[place]
        candidate = request_candidate(state, rules, node, now, alone, prompt, row)
        liking = score(state, rules, node, candidate)
        if liking > best_score:
            best, best_score, best_response = node, liking, candidate.response
        if rules.placement == PACK and packed(state, rules, node, candidate, best_response):
            return node if has_room(rules, candidate) else best
    return best


@compiled
def group_offered(state: State, rules: Rules, now: float, first: int, lengths: Ints, rows: int, node: int) -> None:
    """Micro-batches of one optimizer step may be trained on from `now` [s] on: `lengths`, (micro-batches,), are the tokens in
    each of the `rows` sequences of each; their tasks are numbered from `first` on. They must go to `node`, unless it is NONE.
    There must be as many slots free."""
    slots = state.slots
    for position in range(lengths.size):
        slot = take_slot(state, first + position)
        slots[slot].training, slots[slot].key, slots[slot].alone = True, 0.0, 0.0
        slots[slot].prompt, slots[slot].output, slots[slot].rows = lengths[position], 0, rows
        slots[slot].group_size, slots[slot].node = lengths.size, node
    state.counters[0].training += lengths.size
    offer(state, first)
    open_groups(state, rules, now)


@compiled
def training_closed(state: State) -> None:
    """No more training: drop groups that were offered and not begun."""
    counters = state.counters
    while counters[0].offered_first < counters[0].offered_end:
        first = state.offered[counters[0].offered_first % state.offered.size]
        counters[0].offered_first += 1
        for task in range(first, first + state.slots[slot_of(state, first)].group_size):
            return_slot(state, slot_of(state, task))


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
) -> None:
    """A stage has run a task's forward or backward."""
    slot = slot_of(state, task)
    forecast = NONE if slot != NONE and state.slots[slot].patient else slot
    observe(state, node, stage, forecast, start, end, backward)
    if rules.learns and slot != NONE and stage == state.paths.shape[1] - 1:
        note_overhead(state, slot, end)
    if slot == NONE or state.slots[slot].training:
        passed(state, rules, now, node, stage, task, backward)
        open_groups(state, rules, now)
    if state.nodes[node].held > 0:
        admit(state, rules, now, node)


@compiled
def answer_passed(state: State, rules: Rules, now: float, node: int, task: int, times: Records) -> None:
    """All stages have run a request that generates: `times`, (stages,), have the `start` and `end` on each, of all its passes
    as one."""
    slot = slot_of(state, task)
    observe_all(state, node, NONE if slot != NONE and state.slots[slot].patient else slot, times)
    if rules.learns and slot != NONE:
        note_overhead(state, slot, times[times.size - 1].end)
    if state.nodes[node].held > 0:
        admit(state, rules, now, node)


@compiled
def task_finished(state: State, rules: Rules, now: float, node: int, task: int, output: int) -> None:
    """A task has its outcome, and produced `output` tokens. An unknown one is ignored."""
    slot = slot_of(state, task)
    if slot == NONE:
        return
    slots, nodes = state.slots, state.nodes
    if slots[slot].patient:
        nodes[node].batch_work -= _nanoseconds(state, slot)
        if output > 0:
            note_output(state, output)
        return_slot(state, slot)
        return
    forget(state, slot)
    if not slots[slot].training:
        nodes[node].requests -= 1
        if slots[slot].output > 1:
            nodes[node].generating -= 1
            nodes[node].prompt_tokens -= slots[slot].prompt
            note_tokens(state, slot, now, output)
        if rules.tpot > 0.0:
            note_pass(state, node)
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


@inlined
def tell(state: State, rules: Rules, event: Any) -> None:
    """Take in one event, a record of `lemix_hpc.policy.event_records`; offered groups come by `group_offered`, answers by
    `answer_passed`."""
    if event.kind == PASSED_STAGE:
        stage_finished(
            state,
            rules,
            event.time,
            event.node,
            event.stage,
            event.task,
            event.start,
            event.end,
            event.backward,
        )
    elif event.kind == ARRIVED:
        if event.patient:
            batch_request_arrived(state, rules, event.time, event.task, event.prompt, event.output)
        else:
            request_arrived(state, rules, event.time, event.task, event.prompt, event.output)
    elif event.kind == ENDED:
        task_finished(state, rules, event.time, event.node, event.task, event.output)
    elif event.kind == CLOSED:
        training_closed(state)
    else:
        tick(state, rules, event.time)


def next_tick(state: State) -> float:
    """When to call `tick` [s], inf if there is no need. Not compiled: Python asks after each event, and the call would take
    longer than this; compiled ones compile it for themselves."""
    at: float = state.counters[0]["tick_at"]
    return at if state.counters[0]["holding"] > 0 else math.inf
