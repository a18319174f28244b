"""The twin of `lemix_hpc.runtime.leader.batching_leader`: batches formed per iteration, and what their results mean."""

from __future__ import annotations

import math

from lemix_hpc.policy import execution_rules
from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.policy.pacing import LATE_FOR_PROMPTS
from lemix_hpc.simulator.batch_share import (
    fill_due,
    first_deadline,
    is_idle,
    note_batch,
    note_ended,
    room_alone,
    room_for_batch,
    takes_prompts,
)
from lemix_hpc.simulator.cluster_state import ClusterState, SimulationConfig
from lemix_hpc.simulator.dtypes import FINISHED, NONE
from lemix_hpc.simulator.memory import cache_fits, claim_cache, forget_claim, release_cache, take_cache
from lemix_hpc.simulator.pacing import (
    deadline_of,
    due,
    is_paced,
    longest_batch,
    longest_in_time,
    members_deadline,
    note_pass,
    prompt_part,
    seconds_of,
    squares_of,
)
from lemix_hpc.simulator.pairing_heap import bring_follower
from lemix_hpc.simulator.request_queues import first, go_on, is_batch, leave, promote, wait
from lemix_hpc.simulator.stage import come

may_form_batch = compiled(execution_rules.may_form_batch)


@inlined
def supply_first_stage(cluster: ClusterState, config: SimulationConfig, node: int) -> None:
    """Keep the first stage supplied with batches, as far as there are requests and those are due, or may fill the time."""
    leader = cluster.nodes[node]
    promote(cluster, config, node)
    while True:
        alone = is_paced(config, node) and due(cluster, config, node) > cluster.run[0].now
        if alone and fill_due(cluster, config, node) > cluster.run[0].now:
            break
        request = first(cluster, config, node, alone)
        if request == NONE or not _may_form(cluster, config, node, request):
            break
        if config.limited and not claim_cache(cluster, config, node, request):
            return
        batch = _form(cluster, config, node, alone)
        leader.at_first_stage += 1
        leader.in_flight += 1
        leader.generating += cluster.batches[batch].generates
        come(cluster, batch, node * config.stages)
    if config.limited:
        forget_claim(cluster, node)


@inlined
def next_due(cluster: ClusterState, config: SimulationConfig, node: int) -> float:
    """When a paced leader has to look again, should nothing come to its node before."""
    now, leader, request = cluster.run[0].now, cluster.nodes[node], first(cluster, config, node, False)
    # What is due and has not begun waits for something else.
    if request == NONE or not _may_form(cluster, config, node, request):
        return math.inf
    time = math.inf
    for at in (due(cluster, config, node), fill_due(cluster, config, node), leader.promotes):
        if at > now:
            time = min(time, at)
    return time


@compiled
def _may_form(cluster: ClusterState, config: SimulationConfig, node: int, request: int) -> bool:
    leader = cluster.nodes[node]
    return bool(
        may_form_batch(
            cluster.requests[request].output > 0,
            leader.at_first_stage,
            leader.in_flight,
            leader.generating,
            config.stages,
            is_paced(config, node),
        )
    )


@compiled
def _form(cluster: ClusterState, config: SimulationConfig, node: int, alone: bool) -> int:
    """The next batch: as many requests as the limits allow, at least one. `alone`: of batch requests."""
    requests, leader, ready = cluster.requests, cluster.nodes[node], cluster.ready[node]
    number: int = leader.free
    batch, size, tokens, squares, cached, prefills = cluster.batches[number], 0, 0, 0, 0, 0
    generates, key, longest, paced = False, math.inf, math.inf, is_paced(config, node)
    urgent, patient, without, decode, room = False, False, 0.0, 0.0, math.inf
    while size < config.max_requests:
        task = first(cluster, config, node, alone)
        if task == NONE:
            break
        requests[task].part = requests[task].length
        if paced and is_batch(cluster, task):
            if not patient:
                patient = True
                without = 0.0 if alone else seconds_of(cluster, config, node, tokens, squares, cached, prefills)
                room = _room(cluster, config, node, number, size, without, alone)
            requests[task].part = _batch_part(cluster, config, node, task, room, tokens, squares, cached, prefills)
        # Where memory has an end, nothing stops half-way that nobody could take it from.
        elif paced and not config.limited and ready.head == NONE and leader.idle_since == math.inf:
            if longest == math.inf:
                decode = seconds_of(cluster, config, node, tokens, squares, cached, prefills)
                longest = longest_batch(config.pace, decode)
            longest = _longest_with(
                cluster, config, node, number, size, task, longest, decode, tokens, squares, cached, prefills
            )
            requests[task].part = prompt_part(cluster, config, node, task, longest, tokens, squares, cached, prefills)
        part = requests[task].part
        if part == 0 or (size > 0 and tokens + part > config.max_tokens):
            break
        if config.limited:
            if size > 0 and requests[task].output > 0 and not cache_fits(cluster, config, node, part):
                break
            take_cache(cluster, config, node, task)
        leave(cluster, config, node, task)
        cluster.members[number, size] = task
        request = requests[task]
        size += 1
        tokens += part
        squares += squares_of(part, request.cached)
        cached += request.cached
        prefills += part > 1
        generates |= request.output > 0
        urgent |= not is_batch(cluster, task)
        key = min(key, request.key)
    leader.free = batch.next
    leader.batches += 1
    batch.number, batch.size, batch.tokens, batch.squares = leader.batches, size, tokens, squares
    batch.cached, batch.prefills, batch.generates, batch.key = cached, prefills, generates, key
    batch.urgent, batch.patient = urgent, is_batch(cluster, cluster.members[number, size - 1])
    if paced:
        note_batch(cluster, config, node, number, without)
    return number


@compiled
def _room(
    cluster: ClusterState, config: SimulationConfig, node: int, number: int, size: int, without: float, alone: bool
) -> float:
    """How long a batch may take with batch requests that takes `without` seconds with `size` others; or they `alone`."""
    if alone:
        return room_alone(cluster, config, node)
    deadline = first_deadline(cluster, config, number, size)
    room: float = room_for_batch(config.pace, without, deadline, cluster.run[0].now)
    return room


@compiled
def _longest_with(
    cluster: ClusterState,
    config: SimulationConfig,
    node: int,
    number: int,
    size: int,
    task: int,
    longest: float,
    decode: float,
    tokens: int,
    squares: int,
    cached: int,
    prefills: int,
) -> float:
    """How long a batch of this shape, with `size` members, may take with another prompt in view [s]."""
    request = cluster.requests[task]
    new = squares + squares_of(request.length, request.cached)
    more = prefills + (request.length > 1)
    seconds = seconds_of(cluster, config, node, tokens + request.length, new, cached + request.cached, more)
    left = deadline_of(cluster, config, task) - cluster.run[0].now
    found: float = longest_in_time(config.pace, longest, decode, seconds - decode, left)
    if found == longest:
        return longest
    latest = members_deadline(cluster, config, number, size) + LATE_FOR_PROMPTS * config.pace.tpot
    return found if cluster.run[0].now + found <= latest else longest


@compiled
def _batch_part(
    cluster: ClusterState,
    config: SimulationConfig,
    node: int,
    task: int,
    room: float,
    tokens: int,
    squares: int,
    cached: int,
    prefills: int,
) -> int:
    """How many tokens of a batch request join a batch of this shape that may take `room` seconds; 0: none, and no other's."""
    leader, request = cluster.nodes[node], cluster.requests[task]
    begins = request.cached == 0 or request.length > 1
    if begins and not takes_prompts(is_idle(cluster, config, node), leader.owed):
        return 0
    part: int = prompt_part(cluster, config, node, task, room, tokens, squares, cached, prefills)
    return part if part == request.length or not config.limited else (0 if tokens > 0 else request.length)


@inlined
def take_results(cluster: ClusterState, config: SimulationConfig, node: int, number: int) -> None:
    """A batch has left the last stage: its requests are finished, or go on to their next token."""
    batch, now = cluster.batches[number], cluster.run[0].now
    promote(cluster, config, node)  # before others get ready behind those
    if is_paced(config, node):
        note_pass(cluster, config, node, number)
        note_ended(cluster, node, number)
    for position in range(batch.size):
        task = cluster.members[number, position]
        request = cluster.requests[task]
        if request.first_version == NONE:
            request.first_version = batch.version
        request.last_version = batch.version
        if request.part < request.length:
            request.cached += request.part
            request.length -= request.part
            wait(cluster, node, task)
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
            go_on(cluster, config, node, task)
    cluster.nodes[node].in_flight -= 1
    cluster.nodes[node].generating -= batch.generates


@inlined
def free_batch(cluster: ClusterState, node: int, number: int) -> None:
    """Nobody looks at a batch's members any more."""
    cluster.batches[number].next = cluster.nodes[node].free
    cluster.nodes[node].free = number
