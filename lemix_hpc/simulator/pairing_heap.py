"""What waits in the order of its `after_updates`, then `key`, then `order`: pairing heaps (Fredman et al., Algorithmica 1986).

A heap is known by its root. It is chained through the items themselves, so that heaps of any size need no room.
"""

from __future__ import annotations

from typing import Any

from lemix_hpc.policy.jit import compiled
from lemix_hpc.simulator.cluster_state import ClusterState
from lemix_hpc.simulator.dtypes import NONE, Records


@compiled
def push(items: Records, root: int, item: int) -> int:
    """Add an item; the new root."""
    items[item].child = items[item].sibling = NONE
    return meld(items, root, item)


@compiled
def pop(items: Records, root: int) -> int:
    """Take away the root, which is the first item; the new root."""
    pairs, child = NONE, items[root].child
    while child != NONE:
        second = items[child].sibling
        rest = NONE if second == NONE else items[second].sibling
        pair = meld(items, child, second)
        items[pair].sibling = pairs
        pairs, child = pair, rest
    root = NONE
    while pairs != NONE:
        rest = items[pairs].sibling
        root = meld(items, root, pairs)
        pairs = rest
    return root


@compiled
def meld(items: Records, one: int, other: int) -> int:
    """One heap out of two; its root, whose `sibling` means nothing."""
    if min(one, other) == NONE:
        return max(one, other)
    if _before(items[other], items[one]):
        one, other = other, one
    items[other].sibling = items[one].child
    items[one].child = other
    return one


@compiled
def _before(one: Any, other: Any) -> bool:
    if one.after_updates != other.after_updates:
        return bool(one.after_updates < other.after_updates)
    if one.key != other.key:
        return bool(one.key < other.key)
    return bool(one.order < other.order)


@compiled
def bring_follower(cluster: ClusterState, follower: int, arrival: float) -> None:
    """The next turn of a conversation comes, if there is one."""
    if follower != NONE:
        run = cluster.run[0]
        cluster.requests[follower].arrival = cluster.requests[follower].key = arrival
        run.due = push(cluster.requests, run.due, follower)
