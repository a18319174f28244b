"""Running estimates that scores and forecasts go by: how used nodes are, how long outputs and responses' overheads are."""

from __future__ import annotations

import math

import numpy as np

from lemix_hpc.policy.jit import compiled
from lemix_hpc.policy.rules import Rules
from lemix_hpc.policy.state import WINDOW, State

OVERHEAD_STEP, FIRST_OVERHEAD = 1.05, 0.1
"""A request moves the estimate of what a response takes besides its work by this factor; the first one sets it, to this share
of its work at most."""
ROUNDING = 1e-9
"""Less than this share of a request's work is no overhead, but rounding."""
UTILISATION_MEMORY = 20.0
"""`least-utilised` forgets stage time that was given so many T0 ago, to 1/e."""


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
        known, passes, alone = counters[0].overhead, max(1, slots[slot].output), slots[slot].alone
        besides = (end - slots[slot].release - alone) / passes
        if besides < ROUNDING * alone:
            besides = 0.0  # or the noise of the first response would be what all others are measured by
        if known > 0.0:
            counters[0].overhead = known * (OVERHEAD_STEP if besides > known else 1.0 / OVERHEAD_STEP)
        else:
            counters[0].overhead = min(besides, FIRST_OVERHEAD * alone / passes)
