"""Taking and returning the rows of unfinished tasks, and what is counted when a task goes to a node."""

from __future__ import annotations

import math

import numpy as np

from lemix_hpc.policy.compiled import compiled
from lemix_hpc.policy.rules import FIRST_OVERHEAD, OVERHEAD_STEP, UTILISATION_MEMORY, Rules
from lemix_hpc.policy.state import NONE, WINDOW, State


@compiled
def take_slot(state: State, task: int) -> int:
    """A row for a task; there must be one free."""
    counters = state.counters
    counters[0].free -= 1
    slot = state.free_slots[counters[0].free]
    state.slot_of[task] = slot
    state.slots[slot].task = task
    state.slots[slot].node = NONE
    return slot


@compiled
def return_slot(state: State, slot: int) -> None:
    """The task has its outcome."""
    counters = state.counters
    state.slot_of[state.slots[slot].task] = NONE
    state.free_slots[counters[0].free] = slot
    counters[0].free += 1


@compiled
def decide(state: State, task: int) -> None:
    """Tell the caller to send a task to its node."""
    counters = state.counters
    state.decided[counters[0].decided] = task
    counters[0].decided += 1


@compiled
def note_assigned(state: State, rules: Rules, node: int, slot: int, now: float) -> None:
    """Keep what scores go by: how used a node is, when it got its last task, and how long its tasks are."""
    slots, nodes, memory = state.slots, state.nodes, UTILISATION_MEMORY * rules.t0
    work = state.forward[slot].sum()
    if slots[slot].training:
        work += state.backward[slot].sum()
    nodes[node].used = nodes[node].used * math.exp(-(now - nodes[node].used_at) / memory) + work
    nodes[node].used_at = now
    nodes[node].last_release = now
    length = slots[slot].rows * slots[slot].prompt
    nodes[node].lengths += 1
    difference = length - nodes[node].mean_length
    nodes[node].mean_length += difference / nodes[node].lengths
    nodes[node].squared_lengths += difference * (length - nodes[node].mean_length)


@compiled
def note_output(state: State, output: int) -> None:
    """Learn from the tokens that a request produced: forecasts take the median of the last ones."""
    recent, in_order = state.window
    counters = state.counters[0]
    seen = counters.outputs
    position = min(seen, WINDOW)
    if seen >= WINDOW:
        # The oldest one leaves its place to those behind it.
        position = np.searchsorted(in_order, recent[seen % WINDOW])
        while position + 1 < WINDOW:
            in_order[position] = in_order[position + 1]
            position += 1
    while position > 0 and in_order[position - 1] > output:
        in_order[position] = in_order[position - 1]
        position -= 1
    in_order[position] = recent[seen % WINDOW] = output
    counters.outputs = seen + 1
    counters.expected_output = in_order[min(seen + 1, WINDOW) // 2]


@compiled
def note_overhead(state: State, slot: int, end: float) -> None:
    """Learn from a request that had nothing to wait for: what its response took besides the work, as messages do.

    Follows the median, in small steps: some of those requests waited after all, and machines pause.
    """
    counters, slots = state.counters, state.slots
    if slots[slot].alone > 0.0:
        known, passes = counters[0].overhead, max(1, slots[slot].output)
        besides = (end - slots[slot].release - slots[slot].alone) / passes
        if known > 0.0:
            counters[0].overhead = known * (OVERHEAD_STEP if besides > known else 1.0 / OVERHEAD_STEP)
        else:
            counters[0].overhead = max(0.0, min(besides, FIRST_OVERHEAD * slots[slot].alone / passes))
