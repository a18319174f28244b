"""When training micro-batches go to their node, and to which: the chain rule of the paper, one chain (lane) per node, and
admission. It reads from top to bottom: a group is offered, opened on a node, let go by the release rule, and admitted.

A lane is where one group at a time is fed to a node. `async`: a micro-batch is let go when the one before it has finished
its forward on the first stage, across group boundaries. `sync`: a whole group at once, the next one when the last backward
of the group has left the first stage. What is let go may still be held until admission lets it in.
"""

from __future__ import annotations

import math

from lemix_hpc.policy.candidates import training_candidate, training_rows
from lemix_hpc.policy.estimates import note_assigned
from lemix_hpc.policy.forecast import ALL, assign, expect
from lemix_hpc.policy.jit import compiled
from lemix_hpc.policy.placement_rules import PACK, packs_training, score, turn
from lemix_hpc.policy.rules import OPEN, PAPER, Rules
from lemix_hpc.policy.state import NONE, State, decide
from lemix_hpc.policy.task_slots import return_slot, slot_of


@compiled
def offer(state: State, first: int) -> None:
    """A group, by its first task, is there to be trained on."""
    counters = state.counters
    state.offered[counters[0].offered_end % state.offered.size] = first
    counters[0].offered_end += 1


@compiled
def open_groups(state: State, rules: Rules, now: float) -> None:
    """Open as many groups as there are free lanes at `now` [s], and let their first micro-batches go."""
    counters, nodes, slots = state.counters, state.nodes, state.slots
    while counters[0].lanes > 0 and counters[0].offered_first < counters[0].offered_end:
        # Which node? The group is forecast by its first micro-batch.
        first = state.offered[counters[0].offered_first % state.offered.size]
        slot = slot_of(state, first)
        node = slots[slot].node
        if node == NONE:
            node = _best_node_to_train(state, rules, now, slots[slot].rows, slots[slot].prompt)
            if node == NONE:
                return
        elif nodes[node].open_first != NONE:
            return  # it is fed another, and this one can go nowhere else
        else:
            counters[0].training_turn = (node + 1) % nodes.size
        counters[0].offered_first += 1

        # Refuse what would outlive the allocation.
        if _outlives(state, rules, now, node, slot):
            _refuse(state, first)
            continue

        # Feed it to the node: the first one, or all.
        counters[0].lanes -= 1
        nodes[node].open_first, nodes[node].open_size = first, slots[slot].group_size
        nodes[node].open_gone = 0
        let_go(state, rules, now, node, nodes[node].open_size if rules.sync else 1)


@compiled
def _best_node_to_train(state: State, rules: Rules, now: float, rows: int, length: int) -> int:
    """The node that a group with this first micro-batch goes to: of those that are not being fed another, the one whose turn
    it is, or with the highest score, of equals the first. NONE if there is none that it may go to."""
    node = turn(state, rules, True)
    if node != NONE:
        return node
    forward, backward, kind = state.scratch[0], state.scratch[1], NONE
    best, best_score = NONE, -math.inf
    for node in range(rules.trainers, state.nodes.size):
        if state.nodes[node].open_first != NONE:
            continue
        if rules.placement == PACK:
            if packs_training(state, node):
                return node
            continue
        if state.times.kind_of[node] != kind:
            kind = state.times.kind_of[node]
            training_rows(state, node, rows, length, forward, backward)
        candidate = training_candidate(state, node, now, rows * length, forward, backward)
        liking = score(state, rules, node, candidate)
        if best == NONE or liking > best_score:
            best, best_score = node, liking
    return best


@compiled
def _outlives(state: State, rules: Rules, now: float, node: int, slot: int) -> bool:
    """Whether a group, given by its first micro-batch, would still run when the allocation ends: the others follow that one
    by what they take on the stage where they take longest."""
    if rules.end == math.inf:
        return False
    slots, rest = state.slots, 0.0
    for task in range(slots[slot].task + 1, slots[slot].task + slots[slot].group_size):
        other, longest = slot_of(state, task), 0.0
        forward, backward = state.forward[other], state.backward[other]
        training_rows(state, node, slots[other].rows, slots[other].prompt, forward, backward)
        for stage in range(forward.size):
            longest = max(longest, forward[stage] + backward[stage])
        rest += longest
    forward, backward = state.forward[slot], state.backward[slot]
    training_rows(state, node, slots[slot].rows, slots[slot].prompt, forward, backward)
    _, end, _ = expect(state, node, state.nodes[node].tail, ALL, now, forward)
    return end + backward.sum() + rest > rules.end


@compiled
def _refuse(state: State, first: int) -> None:
    """A group is never started."""
    for task in range(first, first + state.slots[slot_of(state, first)].group_size):
        return_slot(state, slot_of(state, task))
        decide(state, task, NONE)


@compiled
def let_go(state: State, rules: Rules, now: float, node: int, count: int) -> None:
    """The release rule lets the next micro-batches of a node's group go; admission may still hold them."""
    nodes = state.nodes
    for position in range(nodes[node].open_gone, nodes[node].open_gone + count):
        state.slots[slot_of(state, nodes[node].open_first + position)].eligible = now
    nodes[node].open_gone += count
    if nodes[node].held == 0:
        state.counters[0].holding += 1
    nodes[node].held += count
    admit(state, rules, now, node)


@compiled
def admit(state: State, rules: Rules, now: float, node: int) -> None:
    """Send what a node holds, in order, as far as admission lets it in."""
    nodes, slots = state.nodes, state.slots
    while nodes[node].held > 0:
        task = nodes[node].open_first + nodes[node].open_gone - nodes[node].held
        slot = slot_of(state, task)
        training_rows(state, node, slots[slot].rows, slots[slot].prompt, state.forward[slot], state.backward[slot])
        if not _admitted(state, rules, now, node, slot):
            break
        nodes[node].held -= 1
        if nodes[node].held == 0:
            state.counters[0].holding -= 1
        _send(state, rules, now, node, slot)
    _set_tick(state, rules)


@compiled
def _admitted(state: State, rules: Rules, now: float, node: int, slot: int) -> bool:
    """Whether a micro-batch may go to its node now, for the sake of the requests there."""
    slots, nodes = state.slots, state.nodes
    if rules.admission == OPEN or now >= slots[slot].eligible + rules.max_hold:  # rounded as in `_set_tick`
        return True
    if rules.admission == PAPER:
        _, end, _ = expect(state, node, nodes[node].tail, ALL, now, state.forward[slot])
        return end - now <= rules.limit or nodes[node].requests == 0
    return smallest_slack(state, rules, node) >= in_the_way(state, rules, slot)


@compiled
def in_the_way(state: State, rules: Rules, slot: int) -> float:
    """How long a micro-batch can keep requests waiting, seconds: on every stage one piece of a pass, or all of it."""
    total = 0.0
    for stage in range(state.forward.shape[1]):
        longest = max(state.forward[slot, stage], state.backward[slot, stage])
        total += longest / rules.pieces if rules.serving_first else state.forward[slot, stage] + longest
    return total


@compiled
def smallest_slack(state: State, rules: Rules, node: int) -> float:
    """Seconds by which the most pressed request of a node is expected to meet its limit; those that miss it in any case
    have nothing to lose."""
    slots, slack = state.slots, math.inf
    slot = state.nodes[node].head
    while slot != NONE:
        if not slots[slot].training:
            spare = slots[slot].release + rules.limit - state.paths[slot, -1].fe
            if spare >= 0.0:
                slack = min(slack, spare)
        slot = slots[slot].next
    return slack


@compiled
def _send(state: State, rules: Rules, now: float, node: int, slot: int) -> None:
    slots = state.slots
    state.counters[0].sequence += 1
    slots[slot].sequence, slots[slot].release = state.counters[0].sequence, now
    assign(state, node, slot, state.nodes[node].tail)
    slots[slot].predicted = state.paths[slot, -1].fe - now
    note_assigned(state, rules, node, slot, now)
    decide(state, slots[slot].task, slot)


@compiled
def _set_tick(state: State, rules: Rules) -> None:
    """When the first held micro-batch has been held long enough."""
    counters, nodes = state.counters, state.nodes
    counters[0].tick_at = math.inf
    if counters[0].holding == 0:
        return
    for node in range(nodes.size):
        if nodes[node].held > 0:
            slot = slot_of(state, nodes[node].open_first + nodes[node].open_gone - nodes[node].held)
            until = state.slots[slot].eligible + rules.max_hold
            counters[0].tick_at = min(counters[0].tick_at, until)


@compiled
def passed(state: State, rules: Rules, now: float, node: int, stage: int, task: int, backward: bool) -> None:
    """A micro-batch has passed a stage of its node: what follows it may go, and its lane may be free for another group."""
    nodes = state.nodes
    first = nodes[node].open_first
    if stage != 0 or backward != rules.sync or first == NONE or not first <= task < first + nodes[node].open_size:
        return
    if task == first + nodes[node].open_size - 1:
        nodes[node].open_first = NONE
        state.counters[0].lanes += 1
    elif not rules.sync:
        let_go(state, rules, now, node, 1)
