"""The memory of simulated stages: who takes it, who waits for it, and who has to make room.

The twin of `lemix_hpc.runtime.leader.memory_gate`. Memory is taken on all stages of a node before the first stage's forward: a
started task never waits for it, since others behind a weight update would wait for that task. Activations that were offloaded
return to space that is kept for them. Hence there is no deadlock, and what waits is looked at again whenever something ends on
its node.
"""

from __future__ import annotations

import math

from lemix_hpc.policy import memory_rules as policy
from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.policy.memory_rules import OFFLOAD, PREEMPT, RUN
from lemix_hpc.simulator.activations import next_way, note_peak, offload, remove, won
from lemix_hpc.simulator.cluster_state import ClusterState, SimulationConfig, touch
from lemix_hpc.simulator.dtypes import FORWARDS, HELD, NONE
from lemix_hpc.simulator.pacing import note_gone
from lemix_hpc.simulator.request_queues import is_batch, wait

decide = compiled(policy.decide)
yields = compiled(policy.yields)
moves_for_training = compiled(policy.moves_for_training)
waits_for_training = compiled(policy.waits_for_training)
patience_of_training = compiled(policy.patience_of_training)
spare_time = compiled(policy.spare_time)

SERVING, TRAINING = range(2)
"""The claims of a node: of its next batch, and of the micro-batch that is next on its first stage."""


@compiled
def cache_fits(cluster: ClusterState, config: SimulationConfig, node: int, tokens: int) -> bool:
    """Whether there is room for so many more tokens of requests on all stages of a node, without asking anybody."""
    for stage in range(config.stages):
        room = cluster.memory.stages[node * config.stages + stage]
        if tokens * room.cache_bytes > room.limit - room.cache - room.activations - room.kept:
            return False
    return True


@compiled
def claim_cache(cluster: ClusterState, config: SimulationConfig, node: int, request: int) -> bool:
    """Room for a request's next pass: whether it is there. If not, others make room once it has waited long enough."""
    if cluster.requests[request].output == 0:
        return True
    claim, now = cluster.memory.claims[2 * node + SERVING], cluster.run[0].now
    training = cluster.memory.claims[2 * node + TRAINING].since
    if waits_for_training(training, claim.since, _patience(cluster, config, node), now):
        claim.since = min(claim.since, now)
        return False
    return _claim(cluster, config, node, SERVING, request, cluster.requests[request].length)


@inlined
def forget_claim(cluster: ClusterState, node: int) -> None:
    """No batch is due that lacks memory: until one is, training may have what is free."""
    cluster.memory.claims[2 * node + SERVING].since = math.inf


@compiled
def _patience(cluster: ClusterState, config: SimulationConfig, node: int) -> float:
    """How long a micro-batch waits before it takes caches away [s]."""
    seconds: float = patience_of_training(
        config.max_wait, config.max_hold, _in_flight(cluster, config, node), config.gpipe
    )
    return seconds


@compiled
def _in_flight(cluster: ClusterState, config: SimulationConfig, node: int) -> int:
    """Micro-batches of a node that have memory on its first stage."""
    number: int = cluster.stages[node * config.stages].between
    return number


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
    claim, since = cluster.memory.claims[2 * node + TRAINING], cluster.memory.claims[2 * node + SERVING].since
    if yields(claim.since, since, _in_flight(cluster, config, node), config.gpipe):
        claim.since = min(claim.since, cluster.run[0].now)
        return
    if not _claim(cluster, config, node, TRAINING, NONE, tokens):
        return
    claim.asked = False
    if since < math.inf:
        touch(cluster, node)  # requests may have waited for this one
    for stage in range(config.stages):
        room = cluster.memory.stages[node * config.stages + stage]
        room.activations += tokens * room.activation_bytes
        cluster.memory.activations[number * config.stages + stage].where = HELD
        note_peak(room)


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
        note_peak(room)


@compiled
def _claim(cluster: ClusterState, config: SimulationConfig, node: int, kind: int, request: int, tokens: int) -> bool:
    """Look after a claim on all stages of a node; `request`: the one that claims and is no victim, NONE for training."""
    memory, now = cluster.memory, cluster.run[0].now
    claim = memory.claims[2 * node + kind]
    moves_from = min(claim.since, now) + config.max_wait
    preempts_from, moves = moves_from, config.offload_rate > 0.0
    if kind == TRAINING:
        preempts_from = min(claim.since, now) + _patience(cluster, config, node)
        moves &= moves_for_training(_in_flight(cluster, config, node), config.useful_in_flight, config.gpipe)
    granted, stage = True, 0
    while stage < config.stages:
        at = node * config.stages + stage
        room = memory.stages[at]
        need = tokens * (room.cache_bytes if kind == SERVING else room.activation_bytes)
        taken = room.cache + room.activations + room.kept
        own = 0 if request == NONE else cluster.requests[request].held * room.cache_bytes
        victim, cache, leaving, movable = NONE, 0, 0, 0
        if need > room.limit - taken:
            victim = _most_spare(cluster, config, node, request)
            cache = 0 if victim == NONE else cluster.requests[victim].held * room.cache_bytes
            leaving = won(cluster, config, at, False)
            movable = won(cluster, config, at, moves)
        free = room.limit - taken
        todo = decide(free, need, taken - own, leaving, movable, cache, now, moves_from, preempts_from)
        if todo == OFFLOAD:
            offload(cluster, config, at)
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
def next_wake(cluster: ClusterState, config: SimulationConfig, node: int) -> float:
    """When the node has to look again, should nothing end there before: a way or the patience of a claim ends."""
    now, time, patience = cluster.run[0].now, math.inf, _patience(cluster, config, node)
    serving, training = (
        cluster.memory.claims[2 * node + SERVING].since,
        cluster.memory.claims[2 * node + TRAINING].since,
    )
    for deadline in (serving + config.max_wait, training + config.max_wait, training + patience):
        if deadline > now:
            time = min(time, deadline)
    return min(time, next_way(cluster, config, node))
