"""The simulated cluster as arrays of records: everything that the MPI runtime keeps in its leaders, stages and messages.

Tasks are numbered: first the requests in order of arrival, then the micro-batches in order of their groups. A thing that
waits is in one queue at a time, so that queues are chains through the things themselves (`next`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lemix_hpc.policy.by_reference import by_reference
from lemix_hpc.policy.event_records import EVENT
from lemix_hpc.policy.execution_rules import MOST_IN_FLIGHT, NOTHING
from lemix_hpc.policy.jit import inlined
from lemix_hpc.policy.latency_tables import Times
from lemix_hpc.policy.pacing import AS_SOON_AS_POSSIBLE, FIRST_MARGIN, Pace
from lemix_hpc.simulator.dtypes import (
    ACTIVATION,
    AT_STAGE,
    BATCH,
    CLAIM,
    GROUP,
    MARKER,
    MICRO_BATCH,
    NODE,
    NONE,
    PASSED,
    QUEUE,
    REQUEST,
    RUN,
    SPAN,
    STAGE,
    STAGE_MEMORY,
    Records,
)
from lemix_hpc.simulator.tournament_tree import Timers, make_timers


@by_reference
class SimulationConfig(NamedTuple):
    """What does not change. `pieces`: in how many a training pass is cut; `servers`: that many nodes, the first ones, only
    serve, and take over weights every `copy_every` steps; `endless`: training goes on while serving lasts;
    `logs`: what the policy is told is written down; `measures`: it is told how long passes took; `limited`: memory has an end;
    `offload_rate`: bytes per second, 0 where nothing can be offloaded; `paced`: batches wait until `pace` makes them due;
    `between`: from what a stage has to do until it does that, at least [s], for example messages. `batch_share`: of the time
    that interactive requests leave where decode is paced, for batch requests. `in_flight`: micro-batches of a node between the
    first stage's forward and its backward, at most, of which `useful_in_flight` keep stages busy. `max_hold`: how long requests
    may keep training from the memory that it waits for [s]. `recomputing`: stages, from the first on, whose backward runs the
    forward again."""

    nodes: int
    stages: int
    pieces: int
    max_requests: int
    max_tokens: int
    rows: int
    serving_first: bool
    yield_training: bool
    minimum_share: float
    sync: bool
    gpipe: bool
    servers: int
    copy_every: int
    endless: bool
    latency_error: float
    seed: int
    logs: bool
    measures: bool
    limited: bool
    max_wait: float
    offload_rate: float
    paced: bool = False
    pace: Pace = AS_SOON_AS_POSSIBLE
    between: float = 0.0
    batch_share: float = 0.0
    in_flight: int = 1
    max_hold: float = 0.0
    useful_in_flight: int = 1
    recomputing: int = 0


@by_reference
class Memory(NamedTuple):
    """The memory of each stage, two claims for each node; queues of each stage: activations that could leave, in the order of
    their forwards, those on their way, and those that have left and whose backward is not over. Empty without a limit."""

    stages: Records
    claims: Records
    activations: Records
    movable: Records
    leaving: Records
    away: Records


@by_reference
class ClusterState(NamedTuple):
    """All arrays. A stage is at node * stages + stage of `stages` and `markers`, its queues at 3 times that of `queues`; a
    node's batches at node * MOST_IN_FLIGHT of `batches`, with a row of `members` each, and of seconds that stages `took`.
    `ready`: requests of a node that generate, interactive ones and behind those of all nodes batch ones; `lengths`: tokens in a
    row of each micro-batch. Later turns stand behind all other requests, with an arrival of inf. `times` are real, `believed`
    what leaders go by; `wakes`: when each node has to be looked at again, should nothing come."""

    times: Times
    believed: Times
    timers: Timers
    wakes: Timers
    memory: Memory
    run: Records
    requests: Records
    passed: Records
    micro_batches: Records
    lengths: NDArray[np.int64]
    groups: Records
    at_stage: Records
    nodes: Records
    ready: Records
    batches: Records
    members: NDArray[np.int64]
    took: NDArray[np.float64]
    stages: Records
    queues: Records
    markers: Records
    changed: NDArray[np.int64]
    spans: Records
    events: Records


def make_requests(arrival: ArrayLike, prompt: ArrayLike, output: ArrayLike, patient: ArrayLike = False) -> Records:
    """Requests by their arrival [s], in this order, and their tokens; `patient` ones are of class batch. See `follow` for turns
    of conversations."""
    arrivals = np.asarray(arrival, dtype=np.float64)
    requests = np.zeros(len(arrivals), REQUEST)
    requests["arrival"], requests["prompt"], requests["output"] = arrivals, prompt, output
    requests["patient"] = patient
    requests["order"] = np.arange(len(arrivals))
    for field in ("follower", "child", "sibling", "next", "node", "first_version"):
        requests[field] = NONE
    return requests


def follow(requests: Records, later: NDArray[np.int64], earlier: NDArray[np.int64], think: ArrayLike) -> None:
    """Let requests come `think` seconds after the answers to others, or at their own time if those are turned away.

    They stand behind all that come by themselves.
    """
    requests["follower"][earlier], requests["think"][earlier] = later, think
    requests["earliest"][later] = requests["arrival"][later]
    requests["arrival"][later] = np.inf


def make_stage_memory(limit: ArrayLike, cache_bytes: ArrayLike, activation_bytes: ArrayLike) -> Records:
    """The memory of all stages, node after node: bytes for tasks, and bytes for a token in the cache and in training."""
    limits = np.asarray(limit, dtype=np.int64)
    stages = np.zeros(len(limits), STAGE_MEMORY)
    stages["limit"], stages["cache_bytes"], stages["activation_bytes"] = limits, cache_bytes, activation_bytes
    return stages


def make_cluster(
    config: SimulationConfig,
    times: Times,
    requests: Records,
    *,
    spans: int,
    stage_memory: Records | None = None,
    believed: Times | None = None,
) -> ClusterState:
    """An idle cluster in front of these requests, without training; room for so many spans. `stage_memory`: where it is
    limited; `believed`: what leaders take `times` for, if they are wrong."""
    stages, batches = config.nodes * config.stages, MOST_IN_FLIGHT
    run = np.zeros(1, RUN)
    run["listed"] = np.isfinite(requests["arrival"]).sum()
    run["due"], run["unserved"], run["closed"] = NONE, len(requests), True
    nodes = np.zeros(config.nodes, NODE)
    nodes["waiting"] = nodes["patient_waiting"] = NONE
    nodes["free"] = np.arange(config.nodes) * batches
    nodes["trained_at"] = -np.inf
    nodes["margin"] = FIRST_MARGIN * config.pace.tpot
    nodes["ready_deadline"] = nodes["promotes"] = nodes["urgent_due"] = np.inf
    batch = np.zeros(config.nodes * batches, BATCH)
    batch["next"] = np.where(np.arange(len(batch)) % batches == batches - 1, NONE, np.arange(len(batch)) + 1)
    stage = np.zeros(stages, STAGE)
    stage["kind"] = stage["resting"] = NOTHING
    stage["serves"] = NONE
    return ClusterState(
        times=times,
        believed=times if believed is None else believed,
        timers=make_timers(stages),
        wakes=make_timers(config.nodes),
        memory=_make_memory(config, stage_memory),
        run=run,
        requests=requests,
        passed=np.zeros((len(requests), config.stages), PASSED),
        micro_batches=np.zeros(0, MICRO_BATCH),
        lengths=np.zeros(0, dtype=np.int64),
        groups=np.zeros(0, GROUP),
        at_stage=np.zeros((0, config.stages), AT_STAGE),
        nodes=nodes,
        ready=_queues(2 * config.nodes),
        batches=batch,
        members=np.zeros((len(batch), config.max_requests), dtype=np.int64),
        took=np.zeros((len(batch), config.stages)),
        stages=stage,
        queues=_queues(3 * stages),
        # An update waits behind batches; copies of weights may come up to once after each of those.
        markers=np.zeros((stages, MOST_IN_FLIGHT + 2 if config.servers else 1), MARKER),
        changed=np.zeros(config.nodes, dtype=np.int64),
        spans=np.zeros(spans, SPAN),
        events=np.zeros(spans if config.logs else 1, EVENT),
    )


def with_groups(cluster: ClusterState, lengths: list[list[int]]) -> ClusterState:
    """More groups of micro-batches, by the tokens in a row of each."""
    sizes = np.array([len(group) for group in lengths], dtype=np.int64)
    groups, micro_batches = np.zeros(len(sizes), GROUP), np.zeros(int(sizes.sum()), MICRO_BATCH)
    groups["size"] = sizes
    groups["first"] = len(cluster.micro_batches) + np.cumsum(sizes) - sizes
    groups["step"] = NONE
    micro_batches["group"] = np.repeat(np.arange(len(sizes)) + len(cluster.groups), sizes)
    tokens = np.array([length for group in lengths for length in group], dtype=np.int64)
    micro_batches["node"] = NONE
    at_stage = np.zeros((len(sizes), cluster.at_stage.shape[1]), AT_STAGE)
    cluster.run["closed"] = False
    memory = cluster.memory
    if len(memory.stages):
        more = np.zeros(len(micro_batches) * at_stage.shape[1], ACTIVATION)
        memory = memory._replace(activations=np.concatenate([memory.activations, more]))
    return cluster._replace(
        memory=memory,
        groups=np.concatenate([cluster.groups, groups]),
        micro_batches=np.concatenate([cluster.micro_batches, micro_batches]),
        lengths=np.concatenate([cluster.lengths, tokens]),
        at_stage=np.concatenate([cluster.at_stage, at_stage]),
    )


def _make_memory(config: SimulationConfig, stage_memory: Records | None) -> Memory:
    stages = np.zeros(0, STAGE_MEMORY) if stage_memory is None else stage_memory.copy()
    nodes = config.nodes if len(stages) else 0
    claims = np.zeros(2 * nodes, CLAIM)
    claims["since"] = np.inf
    activations = np.zeros(0, ACTIVATION)
    return Memory(stages, claims, activations, *(_queues(len(stages)) for _ in range(3)))


def _queues(count: int) -> Records:
    queues = np.zeros(count, QUEUE)
    queues["head"] = queues["tail"] = NONE
    return queues


@inlined
def append(queue: Any, items: Records, item: int) -> None:
    """To the end of a queue."""
    items[item].next = NONE
    if queue.head == NONE:
        queue.head = item
    else:
        items[queue.tail].next = item
    queue.tail = item


@inlined
def take(queue: Any, items: Records) -> int:
    """The first item of a queue, which it leaves."""
    item: int = queue.head
    queue.head = items[item].next
    return item


@inlined
def touch(cluster: ClusterState, node: int) -> None:
    """Something came to a node: its leader and stages are to be looked at once everything of this instant is there."""
    if not cluster.nodes[node].changed:
        cluster.nodes[node].changed = True
        run = cluster.run[0]
        cluster.changed[(run.first_changed + run.changed) % cluster.changed.size] = node
        run.changed += 1


@inlined
def add_span(
    cluster: ClusterState,
    node: int,
    stage: int,
    task: int,
    kind: int,
    start: float,
    end: float,
    version: int,
    batch: int,
) -> None:
    """One stretch of work of one task. The loop sees to the room."""
    run = cluster.run[0]
    if run.spans == cluster.spans.size:
        raise IndexError("no room for a span")
    span = cluster.spans[run.spans]
    span.node, span.stage, span.task, span.kind = node, stage, task, kind
    span.start, span.end, span.version, span.batch = start, end, version, batch
    run.spans += 1


@inlined
def next_event(cluster: ClusterState, config: SimulationConfig, kind: int) -> int:
    """The number of a new record in `events`, of what happens now. The next one takes its place if nothing is to be written
    down. The loop sees to the room."""
    run = cluster.run[0]
    number: int = run.events
    if number == cluster.events.size:
        raise IndexError("no room for an event")
    run.events += config.logs
    cluster.events[number].kind, cluster.events[number].time = kind, run.now
    return number
