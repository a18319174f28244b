"""The memory of simulated stages: who takes it, who waits for it, and who has to make room.

Memory is taken on all stages of a node before the first stage's forward: a started task never waits for it, since others
behind a weight update would wait for that task. Activations that were offloaded return to space that is reserved for them.
Hence there is no deadlock, and what waits is looked at again whenever something ends on its node.
"""

from __future__ import annotations

import math
from typing import Any

from lemix_hpc.policy import memory_rules as policy
from lemix_hpc.policy.jit import compiled
from lemix_hpc.policy.memory_rules import OFFLOAD, PREEMPT, RUN
from lemix_hpc.simulate.cluster_state import ClusterState, SimulationConfig, append, take, touch
from lemix_hpc.simulate.dtypes import ABSENT, AWAY, BACK, BACKWARDS, COMING, FORWARDS, HELD, LEAVING, NONE
from lemix_hpc.simulate.pacing import note_gone
from lemix_hpc.simulate.request_queues import is_batch, wait

decide = compiled(policy.decide)
spare_time = compiled(policy.spare_time)

SERVING, TRAINING = range(2)
"""The claims of a node: of its next batch, and of the micro-batch that is next on its first stage."""


@compiled
def cache_fits(cluster: ClusterState, config: SimulationConfig, node: int, tokens: int) -> bool:
    """Whether there is room for so many more tokens of requests on all stages of a node, without asking anybody."""
    for stage in range(config.stages):
        room = cluster.memory.stages[node * config.stages + stage]
        if tokens * room.cache_bytes > room.limit - room.cache - room.activations:
            return False
    return True


@compiled
def claim_cache(cluster: ClusterState, config: SimulationConfig, node: int, request: int) -> bool:
    """Room for a request's next pass: whether it is there. If not, others make room once it has waited long enough."""
    if cluster.requests[request].output == 0:
        return True
    return _claim(cluster, config, node, SERVING, request, cluster.requests[request].length)


@compiled
def asked_for(cluster: ClusterState, config: SimulationConfig, node: int, number: int) -> bool:
    """Whether there is memory for the forward of a micro-batch on the first stage. If not, that asks its leader for it."""
    if cluster.memory.activations[number * config.stages].where == HELD:
        return True
    claim = cluster.memory.claims[2 * node + TRAINING]
    if not claim.asked:
        claim.asked = True
        touch(cluster, node)
    return False


@compiled
def claim_activations(cluster: ClusterState, config: SimulationConfig, node: int) -> None:
    """Room for all activations of the micro-batch that has asked, on all stages. If it is there it is taken."""
    if not cluster.memory.claims[2 * node + TRAINING].asked:
        return
    number = cluster.queues[3 * node * config.stages + FORWARDS].head
    tokens = config.rows * cluster.lengths[number]
    if not _claim(cluster, config, node, TRAINING, NONE, tokens):
        return
    cluster.memory.claims[2 * node + TRAINING].asked = False
    for stage in range(config.stages):
        room = cluster.memory.stages[node * config.stages + stage]
        room.activations += tokens * room.activation_bytes
        cluster.memory.activations[number * config.stages + stage].where = HELD
        _note_peak(room)


@compiled
def take_cache(cluster: ClusterState, config: SimulationConfig, node: int, request: int) -> None:
    """A request goes into a batch, for which there is room."""
    if cluster.requests[request].output > 0:
        _hold(cluster, config, node, request, cluster.requests[request].part)


@compiled
def release_cache(cluster: ClusterState, config: SimulationConfig, node: int, request: int) -> None:
    """A request needs its cache no more, or has lost it."""
    _hold(cluster, config, node, request, -cluster.requests[request].held)


@compiled
def _hold(cluster: ClusterState, config: SimulationConfig, node: int, request: int, tokens: int) -> None:
    cluster.requests[request].held += tokens
    for stage in range(config.stages):
        room = cluster.memory.stages[node * config.stages + stage]
        room.cache += tokens * room.cache_bytes
        _note_peak(room)


@compiled
def _note_peak(room: Any) -> None:
    activations = room.activations + room.back
    room.peak_cache = max(room.peak_cache, room.cache)
    room.peak_activations = max(room.peak_activations, activations)
    room.peak = max(room.peak, room.cache + activations)


@compiled
def _claim(cluster: ClusterState, config: SimulationConfig, node: int, kind: int, request: int, tokens: int) -> bool:
    """Look after a claim on all stages of a node; `request`: the one that claims and is no victim, NONE for training."""
    memory, now = cluster.memory, cluster.run[0].now
    claim = memory.claims[2 * node + kind]
    deadline = min(claim.since, now) + config.max_wait
    granted, stage = True, 0
    while stage < config.stages:
        at = node * config.stages + stage
        room = memory.stages[at]
        need = tokens * (room.cache_bytes if kind == SERVING else room.activation_bytes)
        free = room.limit - room.cache - room.activations
        movable = room.movable if config.offload_rate > 0.0 else 0
        others = (
            room.cache
            + room.activations
            - (0 if request == NONE else cluster.requests[request].held) * room.cache_bytes
        )
        victim = _most_spare(cluster, config, node, request) if need > free else NONE
        cache = 0 if victim == NONE else cluster.requests[victim].held * room.cache_bytes
        todo = decide(free, need, others, room.leaving, movable, cache, now, deadline)
        if todo == OFFLOAD:
            _offload(cluster, config, at)
        elif todo == PREEMPT:
            claim.preemptions += 1
            room.preemptions += 1
            _preempt(cluster, config, node, victim)
            claim.recomputed += cluster.requests[victim].length
        else:
            granted &= todo == RUN
            room.lacks |= (todo != RUN) << kind
            stage += 1
    if not granted:
        claim.since = min(claim.since, now)
    elif claim.since < math.inf:
        waited = now - claim.since
        if waited > 0.0:
            claim.waits += 1
            claim.waited += waited
            claim.longest = max(claim.longest, waited)
        for stage in range(config.stages):
            room = memory.stages[node * config.stages + stage]
            lacked = room.lacks & (1 << kind)
            room.waits += lacked > 0 and waited > 0.0
            room.lacks -= lacked
        claim.since = math.inf
    return granted


@compiled
def _most_spare(cluster: ClusterState, config: SimulationConfig, node: int, spared: int) -> int:
    """Of the requests that generate and are in no batch, the one with the most slack, batch requests first; NONE if there is
    none."""
    best, most = NONE, -math.inf
    for queue in (config.nodes + node, node):
        request = cluster.ready[queue].head
        while request != NONE and (queue != node or best == NONE or not is_batch(cluster, best)):
            state = cluster.requests[request]
            spare = spare_time(state.arrival, state.placed + state.predicted)
            if request != spared and (best == NONE or spare > most):
                best, most = request, spare
            request = state.next
    return best


@compiled
def _preempt(cluster: ClusterState, config: SimulationConfig, node: int, request: int) -> None:
    """A request loses its cache: prompt and answer so far become its prompt, and it waits as a new one."""
    release_cache(cluster, config, node, request)
    leader, state = cluster.nodes[node], cluster.requests[request]
    if is_batch(cluster, request):
        remove(cluster.ready[config.nodes + node], cluster.requests, request)
        leader.patient_ready -= 1
        leader.patient_cached -= state.cached
    else:
        remove(cluster.ready[node], cluster.requests, request)
        note_gone(cluster, node, request)
    state.cached, state.length = 0, state.prompt + state.produced
    wait(cluster, node, request)
    touch(cluster, node)


@compiled
def _offload(cluster: ClusterState, config: SimulationConfig, at: int) -> None:
    """The activations whose backward comes last start on their way to the host."""
    memory = cluster.memory
    item: int = memory.movable[at].tail
    remove(memory.movable[at], memory.activations, item)
    append(memory.leaving[at], memory.activations, item)
    nbytes = _bytes(cluster, config, at, item)
    room = memory.stages[at]
    room.movable -= nbytes
    room.leaving += nbytes
    room.offloads += 1
    room.offloaded += nbytes
    memory.activations[item].where = LEAVING
    memory.activations[item].until = _transfer(cluster, config, at, nbytes)


@compiled
def _transfer(cluster: ClusterState, config: SimulationConfig, at: int, nbytes: int) -> float:
    """When so many bytes will have gone over the link of a stage, which takes one thing after the other [s]."""
    room = cluster.memory.stages[at]
    room.link_free = max(room.link_free, cluster.run[0].now) + nbytes / config.offload_rate
    end: float = room.link_free
    return end


@compiled
def _bytes(cluster: ClusterState, config: SimulationConfig, at: int, item: int) -> int:
    length = cluster.lengths[item // config.stages]
    nbytes: int = config.rows * length * cluster.memory.stages[at].activation_bytes
    return nbytes


@compiled
def move(cluster: ClusterState, config: SimulationConfig, node: int) -> None:
    """End the ways that are over, and start to bring back what the next backward of each stage needs."""
    memory, now = cluster.memory, cluster.run[0].now
    for stage in range(config.stages):
        at = node * config.stages + stage
        room, leaving = memory.stages[at], memory.leaving[at]
        while leaving.head != NONE and memory.activations[leaving.head].until <= now:
            item = take(leaving, memory.activations)
            nbytes = _bytes(cluster, config, at, item)
            room.leaving -= nbytes
            room.activations -= nbytes
            memory.activations[item].where = AWAY
        number = cluster.queues[3 * at + BACKWARDS].head
        if number == NONE:
            continue
        item = number * config.stages + stage
        activation = memory.activations[item]
        if activation.where == AWAY and room.back == 0:
            room.back = _bytes(cluster, config, at, item)
            activation.where, activation.until = COMING, _transfer(cluster, config, at, room.back)
            _note_peak(room)
        elif activation.where == COMING and activation.until <= now:
            activation.where = BACK


@compiled
def activations_there(cluster: ClusterState, config: SimulationConfig, stage: int, number: int) -> bool:
    """Whether a backward finds its activations on the device."""
    where = cluster.memory.activations[number * config.stages + stage].where
    return bool(where in (HELD, BACK))


@compiled
def may_leave(cluster: ClusterState, config: SimulationConfig, at: int, stage: int, number: int) -> None:
    """A forward is over: its activations rest until the backward."""
    memory, item = cluster.memory, number * config.stages + stage
    append(memory.movable[at], memory.activations, item)
    memory.stages[at].movable += _bytes(cluster, config, at, item)


@compiled
def must_stay(cluster: ClusterState, config: SimulationConfig, at: int, stage: int, number: int) -> None:
    """A backward begins."""
    memory, item = cluster.memory, number * config.stages + stage
    if memory.activations[item].where == HELD:
        remove(memory.movable[at], memory.activations, item)
        memory.stages[at].movable -= _bytes(cluster, config, at, item)


@compiled
def release_activations(cluster: ClusterState, config: SimulationConfig, at: int, stage: int, number: int) -> None:
    """A backward is over."""
    item = number * config.stages + stage
    room, activation = cluster.memory.stages[at], cluster.memory.activations[item]
    if activation.where == BACK:
        room.back = 0
    else:
        room.activations -= _bytes(cluster, config, at, item)
    activation.where = ABSENT


@compiled
def next_wake(cluster: ClusterState, config: SimulationConfig, node: int) -> float:
    """When the node has to look again, should nothing end there before: a way or the patience of a claim ends."""
    memory, now, time = cluster.memory, cluster.run[0].now, math.inf
    for kind in (SERVING, TRAINING):
        deadline = memory.claims[2 * node + kind].since + config.max_wait
        if deadline > now:
            time = min(time, deadline)
    for stage in range(config.stages):
        at = node * config.stages + stage
        if memory.leaving[at].head != NONE:
            time = min(time, memory.activations[memory.leaving[at].head].until)
        number = cluster.queues[3 * at + BACKWARDS].head
        if number != NONE:
            activation = memory.activations[number * config.stages + stage]
            if activation.where == COMING:
                time = min(time, activation.until)
    return time


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
