"""Requests in the order of their `key`, then of their number: pairing heaps (Fredman et al., Algorithmica 1986).

A heap is known by its root. It is chained through the requests themselves, so that heaps of any size need no room.
"""

from __future__ import annotations

from lemix_hpc.policy.compiled import compiled
from lemix_hpc.simulate.world import NONE, Records


@compiled
def push(requests: Records, root: int, request: int) -> int:
    """Add a request; the new root."""
    requests[request].child = requests[request].sibling = NONE
    return meld(requests, root, request)


@compiled
def pop(requests: Records, root: int) -> int:
    """Take away the root, which is the first request; the new root."""
    pairs, child = NONE, requests[root].child
    while child != NONE:
        second = requests[child].sibling
        rest = NONE if second == NONE else requests[second].sibling
        pair = meld(requests, child, second)
        requests[pair].sibling = pairs
        pairs, child = pair, rest
    root = NONE
    while pairs != NONE:
        rest = requests[pairs].sibling
        root = meld(requests, root, pairs)
        pairs = rest
    return root


@compiled
def meld(requests: Records, one: int, other: int) -> int:
    """One heap out of two; its root, whose `sibling` means nothing."""
    if min(one, other) == NONE:
        return max(one, other)
    first, second = requests[one].key, requests[other].key
    if second < first or (second == first and other < one):
        one, other = other, one
    requests[other].sibling = requests[one].child
    requests[one].child = other
    return one
