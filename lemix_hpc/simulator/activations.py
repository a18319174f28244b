"""Activations between forward and backward, on simulated stages: on the device, on the host, and on their way.

The twin of `lemix_hpc.runtime.stage.resting_activations`, with what the leader knows of it. A stage begins and ends ways when
it looks: between two pieces of work. What was offloaded returns to space that is kept for it.
"""

from __future__ import annotations

import math
from typing import Any

from lemix_hpc.policy import memory_rules as policy
from lemix_hpc.policy.jit import compiled
from lemix_hpc.simulator.cluster_state import ClusterState, SimulationConfig, append
from lemix_hpc.simulator.dtypes import ABSENT, AWAY, BACK, BACKWARDS, BEGUN, COMING, HELD, LEAVING, NONE, SPARED
from lemix_hpc.simulator.pieces import next_look

won_by_offloading = compiled(policy.won_by_offloading)


@compiled
def note_peak(room: Any) -> None:
    activations = room.activations + room.back
    room.peak_cache = max(room.peak_cache, room.cache)
    room.peak_activations = max(room.peak_activations, activations)
    room.peak = max(room.peak, room.cache + activations)


@compiled
def won(cluster: ClusterState, config: SimulationConfig, at: int, movable: bool) -> int:
    """Bytes that others can take on a stage once all that is on its way to the host is there; and all that is `movable`."""
    memory = cluster.memory
    total, largest = _sizes(cluster, config, at, memory.leaving[at])
    if movable:
        more, other = _sizes(cluster, config, at, memory.movable[at])
        total, largest = total + more, max(largest, other)
    bytes_won: int = won_by_offloading(total, largest, memory.stages[at].kept)
    return bytes_won


@compiled
def _sizes(cluster: ClusterState, config: SimulationConfig, at: int, queue: Any) -> tuple[int, int]:
    """Bytes of all that is in a queue, and of the largest in it."""
    total, largest, item = 0, 0, queue.head
    while item != NONE:
        nbytes = _bytes(cluster, config, at, item)
        total, largest = total + nbytes, max(largest, nbytes)
        item = cluster.memory.activations[item].next
    return total, largest


@compiled
def offload(cluster: ClusterState, config: SimulationConfig, at: int) -> None:
    """The activations whose backward comes last are to go to the host. The leader does not know which backwards have begun."""
    memory = cluster.memory
    item: int = memory.movable[at].tail
    remove(memory.movable[at], memory.activations, item)
    append(memory.leaving[at], memory.activations, item)
    room, activation = memory.stages[at], memory.activations[item]
    if activation.where == BEGUN:
        activation.where = SPARED
        return
    nbytes = _bytes(cluster, config, at, item)
    room.offloads += 1
    room.offloaded += nbytes
    start = next_look(cluster.stages[at], cluster.run[0].now)
    activation.where, activation.until = LEAVING, _transfer(config, room, nbytes, start)


@compiled
def _transfer(config: SimulationConfig, room: Any, nbytes: int, start: float) -> float:
    """When so many bytes will have gone over the link of a stage, which takes one thing after the other [s]."""
    end: float = max(room.link_free, start) + nbytes / config.offload_rate
    room.link_free = end
    return end


@compiled
def _bytes(cluster: ClusterState, config: SimulationConfig, at: int, item: int) -> int:
    length = cluster.lengths[item // config.stages]
    nbytes: int = config.rows * length * cluster.memory.stages[at].activation_bytes
    return nbytes


@compiled
def move(cluster: ClusterState, config: SimulationConfig, node: int) -> None:
    """End the ways that are over, and start to bring back what the next backwards need, on the stages that look now."""
    now = cluster.run[0].now
    for stage in range(config.stages):
        at = node * config.stages + stage
        if next_look(cluster.stages[at], now) <= now and (
            _end_ways(cluster, config, at) | _bring_back(cluster, config, at, stage)
        ):
            cluster.stages[at].looked = now


@compiled
def _end_ways(cluster: ClusterState, config: SimulationConfig, at: int) -> bool:
    """What has got to the host is away. Whether anything is."""
    memory, now = cluster.memory, cluster.run[0].now
    room, item, changed = memory.stages[at], memory.leaving[at].head, False
    while item != NONE:
        activation = memory.activations[item]
        following = activation.next
        if activation.where == LEAVING and activation.until <= now:
            remove(memory.leaving[at], memory.activations, item)
            append(memory.away[at], memory.activations, item)
            nbytes = _bytes(cluster, config, at, item)
            room.activations -= nbytes
            room.kept = max(room.kept, nbytes)
            activation.where, changed = AWAY, True
        item = following
    return changed


@compiled
def _bring_back(cluster: ClusterState, config: SimulationConfig, at: int, stage: int) -> bool:
    """Let what the next backward needs come back, one micro-batch at a time. Whether anything has changed."""
    memory, now = cluster.memory, cluster.run[0].now
    room, number = memory.stages[at], cluster.queues[3 * at + BACKWARDS].head
    if number == NONE:
        return False
    item = number * config.stages + stage
    activation = memory.activations[item]
    if activation.where == AWAY and room.back == 0:
        room.back = _bytes(cluster, config, at, item)
        activation.where, activation.until = COMING, _transfer(config, room, room.back, now)
        note_peak(room)
        return True
    if activation.where == COMING and activation.until <= now:
        activation.where = BACK
        return True
    return False


@compiled
def next_way(cluster: ClusterState, config: SimulationConfig, node: int) -> float:
    """When a stage looks next that has ways to end or to begin then [s]."""
    memory, now, time = cluster.memory, cluster.run[0].now, math.inf
    for stage in range(config.stages):
        at = node * config.stages + stage
        due, item = math.inf, memory.leaving[at].head
        while item != NONE:
            if memory.activations[item].where == LEAVING:
                due = min(due, memory.activations[item].until)
            item = memory.activations[item].next
        number = cluster.queues[3 * at + BACKWARDS].head
        if number != NONE:
            activation = memory.activations[number * config.stages + stage]
            if activation.where == COMING:
                due = min(due, activation.until)
            elif activation.where == AWAY and memory.stages[at].back == 0:
                due = now
        if due < math.inf:
            time = min(time, next_look(cluster.stages[at], max(due, now)))
    return time


@compiled
def activations_there(cluster: ClusterState, config: SimulationConfig, stage: int, number: int) -> bool:
    """Whether a backward finds its activations on the device."""
    where = cluster.memory.activations[number * config.stages + stage].where
    return bool(where in (HELD, BACK))


@compiled
def may_leave(cluster: ClusterState, config: SimulationConfig, at: int, stage: int, number: int) -> None:
    """A forward is over: its activations rest until the backward."""
    append(cluster.memory.movable[at], cluster.memory.activations, number * config.stages + stage)


@compiled
def must_stay(cluster: ClusterState, config: SimulationConfig, stage: int, number: int) -> None:
    """A backward begins."""
    activation = cluster.memory.activations[number * config.stages + stage]
    if activation.where == HELD:
        activation.where = BEGUN


@compiled
def release_activations(cluster: ClusterState, config: SimulationConfig, at: int, stage: int, number: int) -> None:
    """A backward is over."""
    memory, item = cluster.memory, number * config.stages + stage
    room, activation = memory.stages[at], memory.activations[item]
    if activation.where == BACK:
        remove(memory.away[at], memory.activations, item)
        _, room.kept = _sizes(cluster, config, at, memory.away[at])
        room.back = 0
    else:
        remove(memory.movable[at] if activation.where == BEGUN else memory.leaving[at], memory.activations, item)
        room.activations -= _bytes(cluster, config, at, item)
    activation.where = ABSENT


@compiled
def remove(queue: Any, items: Any, item: int) -> None:
    """Take an item out of a queue, wherever it stands."""
    before, other = NONE, queue.head
    while other != item:
        before, other = other, items[other].next
    if before == NONE:
        queue.head = items[item].next
    else:
        items[before].next = items[item].next
    if queue.tail == item:
        queue.tail = before
