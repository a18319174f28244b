"""The twin of `lemix_hpc.runtime.leader.batching_leader`: batches formed per iteration, and what their results mean."""

from __future__ import annotations

import math

from lemix_hpc.policy import execution_rules
from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.simulate.cluster_state import ClusterState, SimulationConfig, append, take
from lemix_hpc.simulate.dtypes import FINISHED, NONE
from lemix_hpc.simulate.memory import cache_fits, claim_cache, release_cache, take_cache
from lemix_hpc.simulate.pairing_heap import bring_follower, pop
from lemix_hpc.simulate.stage import come

may_form_batch = compiled(execution_rules.may_form_batch)


@inlined
def supply_first_stage(cluster: ClusterState, config: SimulationConfig, node: int) -> None:
    """Keep the first stage supplied with batches, as far as there are requests."""
    leader = cluster.nodes[node]
    while True:
        request = _next(cluster, node)
        if request == NONE or not may_form_batch(
            cluster.requests[request].output > 0,
            leader.at_first_stage,
            leader.in_flight,
            leader.generating,
            config.stages,
        ):
            return
        if config.limited and not claim_cache(cluster, config, node, request):
            return
        batch = _form(cluster, config, node)
        leader.at_first_stage += 1
        leader.in_flight += 1
        leader.generating += cluster.batches[batch].generates
        come(cluster, batch, node * config.stages)


@inlined
def _next(cluster: ClusterState, node: int) -> int:
    """The request that goes into the next batch first: those that generate already go before new ones."""
    ready = cluster.ready[node].head
    request: int = ready if ready != NONE else cluster.nodes[node].waiting
    return request


@compiled
def _form(cluster: ClusterState, config: SimulationConfig, node: int) -> int:
    """The next batch: as many requests as the limits allow, at least one."""
    requests, leader, ready = cluster.requests, cluster.nodes[node], cluster.ready[node]
    number: int = leader.free
    batch, size, tokens, squares, cached, prefills = cluster.batches[number], 0, 0, 0.0, 0.0, 0
    generates, key = False, math.inf
    while size < config.max_requests:
        task = _next(cluster, node)
        if task == NONE or (size > 0 and tokens + requests[task].length > config.max_tokens):
            break
        if config.limited:
            if size > 0 and requests[task].output > 0 and not cache_fits(cluster, config, node, requests[task].length):
                break
            take_cache(cluster, config, node, task)
        if ready.head != NONE:
            take(ready, requests)
        else:
            leader.waiting = pop(requests, task)
        cluster.members[number, size] = task
        request = requests[task]
        size += 1
        tokens += request.length
        squares += float(request.length) * request.length
        cached += request.cached
        prefills += request.length > 1
        generates |= request.output > 0
        key = min(key, request.key)
    leader.free = batch.next
    leader.batches += 1
    batch.number, batch.size, batch.tokens, batch.squares = leader.batches, size, tokens, squares
    batch.cached, batch.prefills, batch.generates, batch.key = cached, prefills, generates, key
    return number


@inlined
def take_results(cluster: ClusterState, config: SimulationConfig, node: int, number: int) -> None:
    """A batch has left the last stage: its requests are finished, or go on to their next token."""
    batch, now = cluster.batches[number], cluster.run[0].now
    for position in range(batch.size):
        task = cluster.members[number, position]
        request = cluster.requests[task]
        if request.first_version == NONE:
            request.first_version, request.first_token = batch.version, now
        request.last_version = batch.version
        request.produced += request.output > 0
        if request.produced >= request.output:
            request.outcome, request.finished = FINISHED, now
            if config.limited:
                release_cache(cluster, config, node, task)
            bring_follower(cluster, request.follower, now + request.think)
        else:
            request.cached += request.length
            request.length = 1
            append(cluster.ready[node], cluster.requests, task)
    cluster.nodes[node].in_flight -= 1
    cluster.nodes[node].generating -= batch.generates


@inlined
def free_batch(cluster: ClusterState, node: int, number: int) -> None:
    """Nobody looks at a batch's members any more."""
    cluster.batches[number].next = cluster.nodes[node].free
    cluster.nodes[node].free = number
