"""Where among the requests of a node one with a given key would run.

It is looked for on every node, for each request that comes. So a walk along a node's requests keeps what it has seen, until
something changes there: those that look next find their place in that.
"""

from __future__ import annotations

import math

from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.policy.state import NONE, State


@inlined
def place_of_request(state: State, node: int, key: float, now: float, serving_first: bool) -> int:
    """Behind which slot of a node a request with this key is to run (NONE: it is first).

    With serving first it goes before training, and before requests with larger keys that have not begun, as far as is known
    or expected.
    """
    if not serving_first:
        return state.nodes[node].tail
    if state.nodes[node].last_key <= key:
        return state.nodes[node].last_request
    seen, count = state.seen, state.nodes[node].seen
    if count > 0 and (seen[node, count - 1].key <= key or seen[node, count - 1].begin <= now):
        return _place_among_seen(state, node, key, now)
    return _walk(state, node, key, now)


@compiled
def _place_among_seen(state: State, node: int, key: float, now: float) -> int:
    """The first one, from the back, that stays in front: keys and begins are the least so far, so that all behind it do."""
    seen, low, high = state.seen, 0, state.nodes[node].seen - 1
    while low < high:
        middle = (low + high) // 2
        if seen[node, middle].key <= key or seen[node, middle].begin <= now:
            high = middle
        else:
            low = middle + 1
    return int(seen[node, low].slot)


@compiled
def _walk(state: State, node: int, key: float, now: float) -> int:
    """The same, from the last one that was seen on."""
    slots, seen, count = state.slots, state.seen, state.nodes[node].seen
    slot, least_key, least_begin = state.nodes[node].last_request, math.inf, math.inf
    if count > 0:
        last = seen[node, count - 1]
        slot, least_key, least_begin = slots[last.slot].previous, last.key, last.begin
    while True:
        if slot == NONE or state.paths[slot, 0].ran != 0:
            least_key = -math.inf  # nothing goes before it
        else:
            least_key = min(least_key, slots[slot].key)
            least_begin = min(least_begin, state.paths[slot, 0].fb)
        if count < seen.shape[1]:
            here = seen[node, count]
            here.slot, here.key, here.begin = slot, least_key, least_begin
            count += 1
        if least_key <= key or least_begin <= now:
            state.nodes[node].seen = count
            return slot
        slot = slots[slot].previous
