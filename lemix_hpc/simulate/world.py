"""The simulated cluster as arrays of records: everything that the MPI runtime keeps in its leaders, stages and messages.

Tasks are numbered: first the requests in order of arrival, then the micro-batches in order of their groups. A thing that
waits is in one queue at a time, so that queues are chains through the things themselves (`next`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lemix_hpc.policy.compiled import compiled, inlined
from lemix_hpc.policy.stage_queue import NOTHING
from lemix_hpc.policy.times import Times
from lemix_hpc.runtime.leader import MOST_IN_FLIGHT
from lemix_hpc.simulate.timers import Timers, make_timers

NONE = -1
"""No task, no batch, no node."""

OPEN, FINISHED, REFUSED = range(3)
"""Outcomes of a task."""

FORWARDS, BACKWARDS, COMMITS = range(3)
"""The queues of a stage: micro-batches for a forward or a backward, and groups to step."""

Records = NDArray[np.void]

QUEUE = np.dtype([("head", np.int64), ("tail", np.int64)], align=True)

REQUEST = np.dtype(
    [
        # What it is. A turn of a conversation comes `think` seconds after the answer to the request before it, whose
        # `follower` it is.
        ("arrival", np.float64),
        ("prompt", np.int64),
        ("output", np.int64),
        ("think", np.float64),
        ("earliest", np.float64),
        ("follower", np.int64),
        # Where it stands. Waiting requests of a node, and later turns that are due, are heaps by `key` [s].
        ("epoch", np.int64),
        ("key", np.float64),
        ("order", np.int64),
        ("child", np.int64),
        ("sibling", np.int64),
        ("next", np.int64),
        ("node", np.int64),
        ("produced", np.int64),
        ("cached", np.int64),
        ("length", np.int64),
        # Tokens of its cache for which there is memory.
        ("held", np.int64),
        # What became of it.
        ("outcome", np.int64),
        ("predicted", np.float64),
        ("placed", np.float64),
        ("first_token", np.float64),
        ("finished", np.float64),
        ("first_version", np.int64),
        ("last_version", np.int64),
    ],
    align=True,
)

PASSED = np.dtype([("passes", np.int64), ("start", np.float64)], align=True)
"""How many passes of a request a stage has run, and when the first one began."""

MICRO_BATCH = np.dtype(
    [
        ("group", np.int64),
        ("next", np.int64),
        ("since", np.float64),
        ("epoch", np.int64),
        ("outcome", np.int64),
        ("node", np.int64),
        ("eligible", np.float64),
        ("placed", np.float64),
        ("finished", np.float64),
    ],
    align=True,
)

GROUP = np.dtype(
    [
        ("first", np.int64),
        ("size", np.int64),
        ("begun", np.bool_),
        ("next", np.int64),
        ("since", np.float64),
        ("step", np.int64),
    ],
    align=True,
)

AT_STAGE = np.dtype([("forwards", np.int64), ("backwards", np.int64), ("sealed_behind", np.bool_)], align=True)
"""How much of a group has run on a stage, and whether all stages behind it are through."""

BATCH = np.dtype(
    [
        ("number", np.int64),
        ("size", np.int64),
        ("tokens", np.int64),
        ("squares", np.float64),
        ("cached", np.float64),
        ("prefills", np.int64),
        ("version", np.int64),
        ("generates", np.bool_),
        ("since", np.float64),
        ("epoch", np.int64),
        ("key", np.float64),
        ("order", np.int64),
        ("child", np.int64),
        ("sibling", np.int64),
        ("next", np.int64),
    ],
    align=True,
)
"""Those that wait on a stage are a heap; `next` chains those that are not in use."""

NODE = np.dtype(
    [
        ("waiting", np.int64),
        ("in_flight", np.int64),
        ("generating", np.int64),
        ("at_first_stage", np.int64),
        ("batches", np.int64),
        ("free", np.int64),
        ("changed", np.bool_),
    ],
    align=True,
)
"""A leader. `waiting`: root of the heap of new requests; `in_flight`, `generating`: its batches, and those of them that
generate; `free`: chain of unused batch records."""

STAGE = np.dtype(
    [
        # The pass that runs: its kind, what it is of, and the stretch of `planned` of its `left` pieces from `start` on.
        ("kind", np.int64),
        ("item", np.int64),
        ("start", np.float64),
        ("piece", np.float64),
        ("left", np.int64),
        ("planned", np.int64),
        # The training pass that rests; NOTHING if there is none.
        ("resting", np.int64),
        ("resting_item", np.int64),
        ("resting_piece", np.float64),
        ("resting_left", np.int64),
        # Root of the heap of batches that wait.
        ("serves", np.int64),
        # Training's claim to time, weight updates that have come and gone, and micro-batches between their passes.
        ("debt", np.float64),
        ("came", np.int64),
        ("went", np.int64),
        ("version", np.int64),
        ("between", np.int64),
    ],
    align=True,
)

SPAN = np.dtype(
    [
        ("node", np.int64),
        ("stage", np.int64),
        ("task", np.int64),
        ("kind", np.int64),
        ("start", np.float64),
        ("end", np.float64),
        ("version", np.int64),
        ("batch", np.int64),
    ],
    align=True,
)
"""`kind`: as in `lemix_hpc.policy.stage_queue`."""

ARRIVED, OFFERED, CLOSED, PASSED_STAGE, ENDED, TICKED = range(6)
"""What the policy is told."""

EVENT = np.dtype(
    [
        ("kind", np.int64),
        ("time", np.float64),
        ("node", np.int64),
        ("stage", np.int64),
        ("task", np.int64),
        ("start", np.float64),
        ("backward", np.bool_),
        ("last", np.bool_),
    ],
    align=True,
)
"""`task`: of an offered group its number; `start`: when the pass began [s]."""

ROOM = np.dtype(
    [
        # What never changes: bytes for tasks beside the room to come back to, and bytes for each token.
        ("limit", np.int64),
        ("cache_bytes", np.int64),
        ("activation_bytes", np.int64),
        # What is there now. `leaving` is part of `activations`, `back` has its own room.
        ("cache", np.int64),
        ("activations", np.int64),
        ("movable", np.int64),
        ("leaving", np.int64),
        ("back", np.int64),
        ("link_free", np.float64),
        # What is to be reported.
        ("peak", np.int64),
        ("peak_cache", np.int64),
        ("peak_activations", np.int64),
        ("offloads", np.int64),
        ("offloaded", np.int64),
    ],
    align=True,
)
"""The memory of a stage, bytes. `movable`: activations between forward and backward; `link_free`: when the link to the host
is free again."""

CLAIM = np.dtype(
    [
        ("since", np.float64),
        ("waits", np.int64),
        ("waited", np.float64),
        ("longest", np.float64),
        ("preemptions", np.int64),
        ("recomputed", np.int64),
    ],
    align=True,
)
"""Who waits for memory on a node (two each: serving, training) since when, inf if nobody does, and the waits so far [s]."""

ABSENT, HELD, LEAVING, AWAY, COMING, BACK = range(6)
"""Where the activations of a micro-batch are: nowhere, on the device, on their way, on the host, on their way back, back."""

ACTIVATION = np.dtype([("where", np.int64), ("until", np.float64), ("next", np.int64)], align=True)
"""Of a micro-batch on a stage, at micro-batch * stages + stage. `until`: when their way ends [s]."""

RUN = np.dtype(
    [
        ("now", np.float64),
        ("next_arrival", np.int64),
        ("listed", np.int64),
        ("due", np.int64),
        ("unserved", np.int64),
        ("next_group", np.int64),
        ("offered", np.int64),
        ("begun", np.int64),
        ("came", np.int64),
        ("refused", np.bool_),
        ("closed", np.bool_),
        ("steps", np.int64),
        ("ticked", np.float64),
        ("changed", np.int64),
        ("spans", np.int64),
        ("events", np.int64),
        ("measured", np.bool_),
    ],
    align=True,
)
"""The front. `listed`: requests that come by themselves; `unserved`: those without an outcome; `due`: root of the heap of
later turns; `changed`: nodes to look at; `came`: batches that have come to any stage; `measured`: the policy has been told how
long the pass took that ends next."""


class Setting(NamedTuple):
    """What does not change. `pieces`: in how many a training pass is cut; `endless`: training goes on while serving lasts;
    `logs`: what the policy is told is written down; `measures`: it is told how long passes took; `limited`: memory has an end;
    `offload_rate`: bytes per second, 0 where nothing can be offloaded."""

    nodes: int
    stages: int
    pieces: int
    max_requests: int
    max_tokens: int
    rows: int
    serving_first: bool
    yield_training: bool
    minimum_share: float
    gpipe: bool
    endless: bool
    latency_error: float
    seed: int
    logs: bool
    measures: bool
    limited: bool
    max_wait: float
    offload_rate: float


class Memory(NamedTuple):
    """A room for each stage, two claims for each node; queues of each stage: activations that could leave, in the order of
    their forwards, and those on their way. `wakes`: when a node has to look at its memory again. Empty without a limit."""

    rooms: Records
    claims: Records
    activations: Records
    movable: Records
    leaving: Records
    wakes: Timers


class World(NamedTuple):
    """All arrays. A stage is at node * stages + stage of `stages`, its queues at 3 times that of `queues`; a node's
    batches at node * MOST_IN_FLIGHT of `batches`, with a row of `members` each. `ready`: requests of a node that generate;
    `lengths`: tokens in a row of each micro-batch. Later turns stand behind all other requests, with an arrival of inf."""

    times: Times
    timers: Timers
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
    stages: Records
    queues: Records
    changed: NDArray[np.int64]
    spans: Records
    events: Records


def make_requests(arrival: ArrayLike, prompt: ArrayLike, output: ArrayLike) -> Records:
    """Requests by their arrival [s], in this order, and their tokens; see `follow` for turns of conversations."""
    arrivals = np.asarray(arrival, dtype=np.float64)
    requests = np.zeros(len(arrivals), REQUEST)
    requests["arrival"], requests["prompt"], requests["output"] = arrivals, prompt, output
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


def make_rooms(limit: ArrayLike, cache_bytes: ArrayLike, activation_bytes: ArrayLike) -> Records:
    """The memory of all stages, node after node: bytes for tasks, and bytes for a token in the cache and in training."""
    limits = np.asarray(limit, dtype=np.int64)
    rooms = np.zeros(len(limits), ROOM)
    rooms["limit"], rooms["cache_bytes"], rooms["activation_bytes"] = limits, cache_bytes, activation_bytes
    return rooms


def make_world(setting: Setting, times: Times, requests: Records, *, spans: int, rooms: Records | None = None) -> World:
    """An idle cluster in front of these requests, without training; room for so many spans. `rooms`: where it is limited."""
    stages, batches = setting.nodes * setting.stages, MOST_IN_FLIGHT
    run = np.zeros(1, RUN)
    run["listed"] = np.isfinite(requests["arrival"]).sum()
    run["due"], run["unserved"], run["closed"] = NONE, len(requests), True
    nodes = np.zeros(setting.nodes, NODE)
    nodes["waiting"], nodes["free"] = NONE, np.arange(setting.nodes) * batches
    batch = np.zeros(setting.nodes * batches, BATCH)
    batch["next"] = np.where(np.arange(len(batch)) % batches == batches - 1, NONE, np.arange(len(batch)) + 1)
    stage = np.zeros(stages, STAGE)
    stage["kind"] = stage["resting"] = NOTHING
    stage["serves"] = NONE
    return World(
        times=times,
        timers=make_timers(stages),
        memory=_make_memory(setting, rooms),
        run=run,
        requests=requests,
        passed=np.zeros((len(requests), setting.stages), PASSED),
        micro_batches=np.zeros(0, MICRO_BATCH),
        lengths=np.zeros(0, dtype=np.int64),
        groups=np.zeros(0, GROUP),
        at_stage=np.zeros((0, setting.stages), AT_STAGE),
        nodes=nodes,
        ready=_queues(setting.nodes),
        batches=batch,
        members=np.zeros((len(batch), setting.max_requests), dtype=np.int64),
        stages=stage,
        queues=_queues(3 * stages),
        changed=np.zeros(setting.nodes, dtype=np.int64),
        spans=np.zeros(spans, SPAN),
        events=np.zeros(spans if setting.logs else 0, EVENT),
    )


def with_groups(world: World, lengths: list[list[int]]) -> World:
    """More groups of micro-batches, by the tokens in a row of each."""
    sizes = np.array([len(group) for group in lengths], dtype=np.int64)
    groups, micro_batches = np.zeros(len(sizes), GROUP), np.zeros(int(sizes.sum()), MICRO_BATCH)
    groups["size"] = sizes
    groups["first"] = len(world.micro_batches) + np.cumsum(sizes) - sizes
    groups["step"] = NONE
    micro_batches["group"] = np.repeat(np.arange(len(sizes)) + len(world.groups), sizes)
    tokens = np.array([length for group in lengths for length in group], dtype=np.int64)
    micro_batches["node"] = NONE
    at_stage = np.zeros((len(sizes), world.at_stage.shape[1]), AT_STAGE)
    world.run["closed"] = False
    memory = world.memory
    if len(memory.rooms):
        more = np.zeros(len(micro_batches) * at_stage.shape[1], ACTIVATION)
        memory = memory._replace(activations=np.concatenate([memory.activations, more]))
    return world._replace(
        memory=memory,
        groups=np.concatenate([world.groups, groups]),
        micro_batches=np.concatenate([world.micro_batches, micro_batches]),
        lengths=np.concatenate([world.lengths, tokens]),
        at_stage=np.concatenate([world.at_stage, at_stage]),
    )


def _make_memory(setting: Setting, rooms: Records | None) -> Memory:
    rooms = np.zeros(0, ROOM) if rooms is None else rooms.copy()
    nodes = setting.nodes if len(rooms) else 0
    claims = np.zeros(2 * nodes, CLAIM)
    claims["since"] = np.inf
    activations = np.zeros(0, ACTIVATION)
    return Memory(rooms, claims, activations, _queues(len(rooms)), _queues(len(rooms)), make_timers(nodes))


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
def touch(world: World, node: int) -> None:
    """Something came to a node: its leader and stages are to be looked at once everything of this instant is there."""
    if not world.nodes[node].changed:
        world.nodes[node].changed = True
        run = world.run[0]
        world.changed[run.changed] = node
        run.changed += 1


@inlined
def add_span(
    world: World, node: int, stage: int, task: int, kind: int, start: float, end: float, version: int, batch: int
) -> None:
    """One stretch of work of one task. The loop sees to the room."""
    run = world.run[0]
    if run.spans == world.spans.size:
        raise IndexError("no room for a span")
    span = world.spans[run.spans]
    span.node, span.stage, span.task, span.kind = node, stage, task, kind
    span.start, span.end, span.version, span.batch = start, end, version, batch
    run.spans += 1


@compiled
def log(
    world: World,
    setting: Setting,
    kind: int,
    node: int,
    stage: int,
    task: int,
    start: float,
    backward: bool,
    last: bool,
) -> None:
    """Write down what the policy is told, if that is asked for. The loop sees to the room."""
    if not setting.logs:
        return
    run = world.run[0]
    if run.events == world.events.size:
        raise IndexError("no room for an event")
    event = world.events[run.events]
    event.kind, event.time, event.node, event.stage, event.task = kind, run.now, node, stage, task
    event.start, event.backward, event.last = start, backward, last
    run.events += 1
