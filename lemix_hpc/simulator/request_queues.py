"""The twin of `lemix_hpc.runtime.leader.request_queues`: the requests of a node that are in no batch, by their class."""

from __future__ import annotations

import math

from lemix_hpc.policy import classes
from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.simulator.cluster_state import ClusterState, SimulationConfig, append, take
from lemix_hpc.simulator.dtypes import NONE
from lemix_hpc.simulator.pacing import note_gone, note_ready, note_waiting
from lemix_hpc.simulator.pairing_heap import pop, push

waits_as_batch = compiled(classes.waits_as_batch)


@compiled
def is_batch(cluster: ClusterState, task: int) -> bool:
    """Whether a request waits behind interactive ones."""
    request = cluster.requests[task]
    return bool(waits_as_batch(request.patient, request.key, cluster.run[0].now))


@compiled
def wait(cluster: ClusterState, node: int, task: int) -> None:
    """A request is to have its prompt computed, or the rest of it."""
    leader = cluster.nodes[node]
    if is_batch(cluster, task):
        leader.patient_waiting = push(cluster.requests, leader.patient_waiting, task)
        leader.promotes = min(leader.promotes, cluster.requests[task].key)
    else:
        leader.waiting = push(cluster.requests, leader.waiting, task)
        note_waiting(cluster, node, task, 1)


@compiled
def go_on(cluster: ClusterState, config: SimulationConfig, node: int, task: int) -> None:
    """A request is to have its next token."""
    if is_batch(cluster, task):
        leader, request = cluster.nodes[node], cluster.requests[task]
        append(cluster.ready[config.nodes + node], cluster.requests, task)
        leader.patient_ready += 1
        leader.patient_cached += request.cached
        leader.promotes = min(leader.promotes, request.key)
    else:
        append(cluster.ready[node], cluster.requests, task)
        note_ready(cluster, config, node, task)


@inlined
def first(cluster: ClusterState, config: SimulationConfig, node: int, alone: bool) -> int:
    """The request that goes into the next batch first, NONE if there is none: those that generate already go before new ones,
    and batch requests behind all others, or `alone`."""
    leader = cluster.nodes[node]
    task: int = NONE if alone else cluster.ready[node].head
    if task == NONE and not alone:
        task = leader.waiting
    if task == NONE:
        task = cluster.ready[config.nodes + node].head
    if task == NONE:
        task = leader.patient_waiting
    return task


@compiled
def leave(cluster: ClusterState, config: SimulationConfig, node: int, task: int) -> None:
    """The first one of its queue goes into a batch."""
    requests, leader = cluster.requests, cluster.nodes[node]
    if cluster.ready[node].head == task:
        take(cluster.ready[node], requests)
        note_gone(cluster, node, task)
    elif leader.waiting == task:
        leader.waiting = pop(requests, task)
        note_waiting(cluster, node, task, -1)
    elif leader.patient_waiting == task:
        leader.patient_waiting = pop(requests, task)
    else:
        take(cluster.ready[config.nodes + node], requests)
        leader.patient_ready -= 1
        leader.patient_cached -= requests[task].cached


@compiled
def promote(cluster: ClusterState, config: SimulationConfig, node: int) -> None:
    """Batch requests whose window is nearly over go with the interactive ones from now on, in the order of their windows: as if
    each had been promoted in time, however late this is called."""
    leader, requests, now = cluster.nodes[node], cluster.requests, cluster.run[0].now
    if now < leader.promotes:
        return
    leader.promotes = math.inf
    while leader.patient_waiting != NONE and requests[leader.patient_waiting].key <= now:
        task = leader.patient_waiting
        leader.patient_waiting = pop(requests, task)
        wait(cluster, node, task)
    if leader.patient_waiting != NONE:
        leader.promotes = requests[leader.patient_waiting].key
    queue = cluster.ready[config.nodes + node]
    task, queue.head = queue.head, NONE
    leader.patient_ready = leader.patient_cached = 0
    late = NONE
    while task != NONE:
        behind = requests[task].next
        if is_batch(cluster, task):
            go_on(cluster, config, node, task)
        else:
            late = push(requests, late, task)
        task = behind
    while late != NONE:
        task, late = late, pop(requests, late)
        go_on(cluster, config, node, task)
