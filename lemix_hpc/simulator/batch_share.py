"""The twin of `lemix_hpc.policy.batch_share`: when batch requests run, and what part of the time is theirs."""

from __future__ import annotations

import math

from lemix_hpc.policy import classes, pacing
from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.policy.pacing import LEAST_PART
from lemix_hpc.simulator.cluster_state import ClusterState, SimulationConfig
from lemix_hpc.simulator.dtypes import NONE
from lemix_hpc.simulator.pacing import deadline_of, due, idle_at, longest_batch, seconds_of, squares_of

batch_debt_after = compiled(classes.batch_debt_after)
may_fill = compiled(classes.may_fill)
takes_prompts = compiled(classes.takes_prompts)
room_for_batch = compiled(pacing.room_for_batch)
next_deadline = compiled(pacing.next_deadline)


@inlined
def is_idle(cluster: ClusterState, config: SimulationConfig, node: int) -> bool:
    """Whether the first stage has had no training for so long that others may have its time."""
    return idle_at(cluster, config, node) <= cluster.run[0].now


@compiled
def fill_due(cluster: ClusterState, config: SimulationConfig, node: int) -> float:
    """When a batch of batch requests alone may begin [s], inf: not before something happens."""
    leader, now = cluster.nodes[node], cluster.run[0].now
    if leader.patient_ready == 0 and leader.patient_waiting == NONE:
        return math.inf
    first, in_flight, generating = leader.at_first_stage, leader.patient_in_flight, leader.generating
    idle, tpot = is_idle(cluster, config, node), config.pace.tpot
    if may_fill(idle, leader.owed, tpot, first, in_flight, generating, config.stages):
        return now if now + _least(cluster, config, node) <= before_interactive(cluster, config, node) else math.inf
    if may_fill(True, leader.owed, tpot, first, in_flight, generating, config.stages):
        at: float = idle_at(cluster, config, node)
        return at
    return math.inf


@compiled
def before_interactive(cluster: ClusterState, config: SimulationConfig, node: int) -> float:
    """When the next batch with interactive requests is due, those included that are in a batch now [s]."""
    at: float = min(due(cluster, config, node), cluster.nodes[node].urgent_due)
    return at


@compiled
def room_alone(cluster: ClusterState, config: SimulationConfig, node: int) -> float:
    """How long a batch of batch requests alone may take on all stages [s]."""
    leader = cluster.nodes[node]
    decode = seconds_of(cluster, config, node, leader.patient_ready, leader.patient_ready, leader.patient_cached, 0)
    return min(longest_batch(config.pace, decode), before_interactive(cluster, config, node) - cluster.run[0].now)


@compiled
def _least(cluster: ClusterState, config: SimulationConfig, node: int) -> float:
    """What the least batch of batch requests takes: all that have begun, or the beginning of a prompt."""
    leader = cluster.nodes[node]
    if leader.patient_ready > 0:
        return seconds_of(cluster, config, node, leader.patient_ready, leader.patient_ready, leader.patient_cached, 0)
    request = cluster.requests[leader.patient_waiting]
    part = min(request.length, LEAST_PART)
    return seconds_of(cluster, config, node, part, squares_of(part, request.cached), request.cached, int(part > 1))


@inlined
def note_trained(cluster: ClusterState, config: SimulationConfig, node: int, seconds: float) -> None:
    """A stage has trained for so long."""
    leader = cluster.nodes[node]
    if seconds > 0.0:
        leader.trained_at = cluster.run[0].now
    leader.owed = batch_debt_after(leader.owed, config.batch_share, seconds, 0.0, config.pace.tpot)


@compiled
def note_batch(cluster: ClusterState, config: SimulationConfig, node: int, number: int, alone: float) -> None:
    """A batch is formed that takes `alone` seconds without batch requests: they pay for the rest, while training waits; and it
    is known when its interactive requests are due again."""
    leader, batch, now = cluster.nodes[node], cluster.batches[number], cluster.run[0].now
    seconds = seconds_of(cluster, config, node, batch.tokens, int(batch.squares), int(batch.cached), batch.prefills)
    if batch.patient:
        leader.patient_in_flight += 1
        if not is_idle(cluster, config, node):
            leader.owed = batch_debt_after(leader.owed, config.batch_share, 0.0, seconds - alone, config.pace.tpot)
    if not batch.urgent:
        return
    leader.urgent_in_flight += 1
    for position in range(batch.size):
        request = cluster.requests[cluster.members[number, position]]
        if request.patient:
            continue
        partial, last = request.part < request.length, request.produced + 1 >= request.output
        if partial or not last:
            deadline = next_deadline(
                config.pace, request.arrival, request.first_token, request.produced, partial, now + seconds
            )
            leader.urgent_due = min(leader.urgent_due, deadline - seconds - leader.margin)


@inlined
def note_ended(cluster: ClusterState, node: int, number: int) -> None:
    """A batch has left the last stage."""
    leader, batch = cluster.nodes[node], cluster.batches[number]
    leader.patient_in_flight -= batch.patient
    leader.urgent_in_flight -= batch.urgent
    if leader.urgent_in_flight == 0:
        leader.urgent_due = math.inf


@inlined
def first_deadline(cluster: ClusterState, config: SimulationConfig, number: int, size: int) -> float:
    """The first deadline among the first `size` members of a batch [s]."""
    deadline = math.inf
    for position in range(size):
        deadline = min(deadline, deadline_of(cluster, config, cluster.members[number, position]))
    return deadline
