"""The twin of `lemix_hpc.runtime.leader.batching_leader`: batches formed per iteration, and what their results mean."""

from __future__ import annotations

import math

from lemix_hpc.policy import execution_rules
from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.simulate.cluster_state import ClusterState, SimulationConfig, append, take
from lemix_hpc.simulate.dtypes import FINISHED, NONE
from lemix_hpc.simulate.memory import cache_fits, claim_cache, release_cache, take_cache
from lemix_hpc.simulate.pacing import (
    due,
    is_paced,
    longest_batch,
    note_gone,
    note_pass,
    note_ready,
    note_waiting,
    prompt_part,
    seconds_of,
    squares_of,
)
from lemix_hpc.simulate.pairing_heap import bring_follower, pop, push
from lemix_hpc.simulate.stage import come

may_form_batch = compiled(execution_rules.may_form_batch)


@inlined
def supply_first_stage(cluster: ClusterState, config: SimulationConfig, node: int) -> None:
    """Keep the first stage supplied with batches, as far as there are requests and those are due."""
    leader = cluster.nodes[node]
    while _may_form(cluster, config, node):
        if is_paced(config, node) and due(cluster, config, node) > cluster.run[0].now:
            return
        if config.limited and not claim_cache(cluster, config, node, _next(cluster, node)):
            return
        batch = _form(cluster, config, node)
        leader.at_first_stage += 1
        leader.in_flight += 1
        leader.generating += cluster.batches[batch].generates
        come(cluster, batch, node * config.stages)


@inlined
def next_due(cluster: ClusterState, config: SimulationConfig, node: int) -> float:
    """When a paced leader has to look again, should nothing come to its node before."""
    time = due(cluster, config, node) if _may_form(cluster, config, node) else math.inf
    # What is due and has not begun waits for something else.
    return time if time > cluster.run[0].now else math.inf


@compiled
def _may_form(cluster: ClusterState, config: SimulationConfig, node: int) -> bool:
    leader, request = cluster.nodes[node], _next(cluster, node)
    return request != NONE and may_form_batch(
        cluster.requests[request].output > 0,
        leader.at_first_stage,
        leader.in_flight,
        leader.generating,
        config.stages,
    )


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
    batch, size, tokens, squares, cached, prefills = cluster.batches[number], 0, 0, 0, 0, 0
    generates, key, longest = False, math.inf, math.inf
    while size < config.max_requests:
        task = _next(cluster, node)
        if task == NONE:
            break
        requests[task].part = requests[task].length
        # Where memory has an end, nothing stops half-way that nobody could take it from.
        if is_paced(config, node) and not config.limited and ready.head == NONE and leader.idle_since == math.inf:
            if longest == math.inf:
                longest = longest_batch(
                    config.pace, seconds_of(cluster, config, node, tokens, squares, cached, prefills)
                )
            requests[task].part = prompt_part(cluster, config, node, task, longest, tokens, squares, cached, prefills)
        part = requests[task].part
        if part == 0 or (size > 0 and tokens + part > config.max_tokens):
            break
        if config.limited:
            if size > 0 and requests[task].output > 0 and not cache_fits(cluster, config, node, part):
                break
            take_cache(cluster, config, node, task)
        if ready.head != NONE:
            take(ready, requests)
            note_gone(cluster, node, task)
        else:
            leader.waiting = pop(requests, task)
            note_waiting(cluster, node, task, -1)
        cluster.members[number, size] = task
        request = requests[task]
        size += 1
        tokens += part
        squares += squares_of(part, request.cached)
        cached += request.cached
        prefills += part > 1
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
    if is_paced(config, node):
        note_pass(cluster, config, node, number)
    for position in range(batch.size):
        task = cluster.members[number, position]
        request = cluster.requests[task]
        if request.first_version == NONE:
            request.first_version = batch.version
        request.last_version = batch.version
        if request.part < request.length:
            request.cached += request.part
            request.length -= request.part
            leader = cluster.nodes[node]
            leader.waiting = push(cluster.requests, leader.waiting, task)
            note_waiting(cluster, node, task, 1)
            continue
        if request.produced == 0:
            request.first_token = now
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
            note_ready(cluster, config, node, task)
    cluster.nodes[node].in_flight -= 1
    cluster.nodes[node].generating -= batch.generates


@inlined
def free_batch(cluster: ClusterState, node: int, number: int) -> None:
    """Nobody looks at a batch's members any more."""
    cluster.batches[number].next = cluster.nodes[node].free
    cluster.nodes[node].free = number
