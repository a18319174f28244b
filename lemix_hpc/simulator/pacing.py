"""The twin of `lemix_hpc.policy.pacer`: when the next batch of a node is due, from sums over the requests there."""

from __future__ import annotations

import math

from lemix_hpc.policy import pacing as policy
from lemix_hpc.policy.execution_rules import NOTHING
from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.policy.latency_tables import SERVE_PASS, stage_seconds
from lemix_hpc.policy.pacing import LEAST_PART
from lemix_hpc.simulator.cluster_state import ClusterState, SimulationConfig
from lemix_hpc.simulator.dtypes import FORWARDS, NONE

token_deadline = compiled(policy.token_deadline)
batch_due = compiled(policy.batch_due)
idle_due = compiled(policy.idle_due)
margin_after = compiled(policy.margin_after)
longest_batch = compiled(policy.longest_batch)
shared_seconds = compiled(policy.shared_seconds)
seconds_through = compiled(policy.seconds_through)
prompts_due = compiled(policy.prompts_due)
longest_in_time = compiled(policy.longest_in_time)

UNKNOWN = -math.inf
"""A first deadline that has to be looked up."""


@inlined
def is_paced(config: SimulationConfig, node: int) -> bool:
    """Whether a node's batches wait until they are due: not where nothing is ever trained."""
    return config.paced and node >= config.servers


@inlined
def note_waiting(cluster: ClusterState, node: int, task: int, more: int) -> None:
    """A request joins those that wait (`more` 1), or leaves them (-1)."""
    leader, length, cached = cluster.nodes[node], cluster.requests[task].length, cluster.requests[task].cached
    leader.waiting_requests += more
    leader.waiting_tokens += more * length
    leader.waiting_squares += more * squares_of(length, cached)
    leader.waiting_cached += more * cached
    leader.waiting_prefills += more * (length > 1)


@inlined
def note_ready(cluster: ClusterState, config: SimulationConfig, node: int, task: int) -> None:
    """A request joins those that go on to their next token."""
    leader = cluster.nodes[node]
    leader.ready_requests += 1
    leader.ready_cached += cluster.requests[task].cached
    leader.ready_deadline = min(leader.ready_deadline, deadline_of(cluster, config, task))


@inlined
def note_gone(cluster: ClusterState, node: int, task: int) -> None:
    """A request leaves them."""
    leader = cluster.nodes[node]
    leader.ready_requests -= 1
    leader.ready_cached -= cluster.requests[task].cached
    leader.ready_deadline = UNKNOWN if leader.ready_requests > 0 else math.inf


@compiled
def deadline_of(cluster: ClusterState, config: SimulationConfig, task: int) -> float:
    """When the next token of a request is due [s]."""
    request = cluster.requests[task]
    deadline: float = token_deadline(config.pace, request.arrival, request.first_token, request.produced)
    return deadline


@compiled
def due(cluster: ClusterState, config: SimulationConfig, node: int) -> float:
    """When the next batch of a node is due [s]: inf without interactive requests there."""
    leader = cluster.nodes[node]
    if leader.ready_requests == 0 and leader.waiting == NONE:
        return math.inf
    if leader.ready_deadline == UNKNOWN:
        leader.ready_deadline, task = math.inf, cluster.ready[node].head
        while task != NONE:
            leader.ready_deadline = min(leader.ready_deadline, deadline_of(cluster, config, task))
            task = cluster.requests[task].next
    tokens, squares = leader.ready_requests + leader.waiting_tokens, leader.ready_requests + leader.waiting_squares
    cached, prefills = leader.ready_cached + leader.waiting_cached, leader.waiting_prefills
    seconds = seconds_of(cluster, config, node, tokens, squares, cached, prefills)
    if leader.patient_ready > 0:
        more, before = leader.patient_ready, leader.patient_cached
        together = seconds_of(cluster, config, node, tokens + more, squares + more, cached + before, prefills)
        seconds = shared_seconds(config.pace, seconds, together)
    at = min(batch_due(leader.ready_deadline, seconds, leader.margin), idle_at(cluster, config, node))
    if leader.waiting != NONE:
        ready = leader.ready_requests
        decode = seconds_of(cluster, config, node, ready, ready, leader.ready_cached, 0)
        through = seconds_through(longest_batch(config.pace, decode), decode, seconds)
        deadline = deadline_of(cluster, config, leader.waiting)
        at = min(at, prompts_due(config.pace, deadline, through, leader.margin))
    return at


@inlined
def idle_at(cluster: ClusterState, config: SimulationConfig, node: int) -> float:
    """When a batch of a node may begin although none is due [s]."""
    leader = cluster.nodes[node]
    at: float = idle_due(config.pace, leader.idle_since, leader.trained_at)
    return at


@inlined
def squares_of(length: int, cached: int) -> int:
    """What so many new tokens of a request on top of cached ones add to the squares of a `Shape`."""
    return length * length + (2 * length * cached if length > 1 else 0)


@compiled
def seconds_of(
    cluster: ClusterState, config: SimulationConfig, node: int, tokens: int, squares: int, cached: int, prefills: int
) -> float:
    """What a batch of this shape is taken to need on all stages of a node [s]."""
    seconds = 0.0
    for stage in range(config.stages):
        seconds += stage_seconds(
            cluster.believed, node, SERVE_PASS, stage, tokens, float(squares), float(cached), prefills
        )
    return seconds


@compiled
def prompt_part(
    cluster: ClusterState,
    config: SimulationConfig,
    node: int,
    task: int,
    longest: float,
    tokens: int,
    squares: int,
    cached: int,
    prefills: int,
) -> int:
    """How many tokens of a prompt join a batch of this shape that may take `longest` seconds; 0: none any more."""
    length, before = cluster.requests[task].length, cluster.requests[task].cached
    fits, too_many = 0, length + 1
    middle = length
    while too_many - fits > 1:
        new = squares + squares_of(middle, before)
        more = prefills + (middle > 1)
        if seconds_of(cluster, config, node, tokens + middle, new, cached + before, more) <= longest:
            fits = middle
        else:
            too_many = middle
        middle = (fits + too_many) // 2
    if fits < min(length, LEAST_PART):
        fits = 0 if tokens > 0 else min(length, LEAST_PART)
    return fits


@compiled
def members_deadline(cluster: ClusterState, config: SimulationConfig, number: int, size: int) -> float:
    """When the next token of the first `size` members of a batch is due that have begun their answers [s]."""
    deadline = math.inf
    for position in range(size):
        task = cluster.members[number, position]
        if cluster.requests[task].produced > 0:
            deadline = min(deadline, deadline_of(cluster, config, task))
    return deadline


@inlined
def note_first_stage(cluster: ClusterState, config: SimulationConfig, node: int) -> None:
    """Everything of this instant is there: does the first stage do anything, or has it training that waits?"""
    at = node * config.stages
    stage, leader = cluster.stages[at], cluster.nodes[node]
    works = stage.kind != NOTHING or stage.resting != NOTHING or cluster.queues[3 * at + FORWARDS].head != NONE
    leader.idle_since = math.inf if works else min(leader.idle_since, cluster.run[0].now)


@inlined
def note_pass(cluster: ClusterState, config: SimulationConfig, node: int, number: int) -> None:
    """A batch has left the last stage, and its results are not taken yet: was it late?"""
    deadline = math.inf
    for position in range(cluster.batches[number].size):
        task = cluster.members[number, position]
        if not cluster.requests[task].patient:
            deadline = min(deadline, deadline_of(cluster, config, task))
    if deadline == math.inf:
        return
    leader = cluster.nodes[node]
    leader.margin = margin_after(config.pace, leader.margin, cluster.run[0].now > deadline)
