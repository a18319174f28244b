"""The memory of simulated stages: who takes it, who waits for it, and who has to make room.

Memory is taken on all stages of a node before the first stage's forward: a task that has set out never waits for it, since
others behind a weight update would wait for that task. Activations that were offloaded return to room that is kept for
them. Hence nothing ever waits in a circle, and what waits is looked at again whenever something ends on its node.
"""

from __future__ import annotations

import math
from typing import Any

from lemix_hpc.policy import memory_rules as policy
from lemix_hpc.policy.jit import compiled
from lemix_hpc.policy.memory_rules import OFFLOAD, PREEMPT, RUN
from lemix_hpc.simulate.cluster_state import Setting, World, append, take, touch
from lemix_hpc.simulate.dtypes import ABSENT, AWAY, BACK, BACKWARDS, COMING, HELD, LEAVING, NONE
from lemix_hpc.simulate.pairing_heap import push
from lemix_hpc.simulate.tournament_tree import set_timer

decide = compiled(policy.decide)
spare_time = compiled(policy.spare_time)

SERVING, TRAINING = range(2)
"""The claims of a node: of its next batch, and of the micro-batch that is next on its first stage."""


@compiled
def cache_fits(world: World, setting: Setting, node: int, tokens: int) -> bool:
    """Whether there is room for so many more tokens of requests on all stages of a node, without asking anybody."""
    for stage in range(setting.stages):
        room = world.memory.rooms[node * setting.stages + stage]
        if tokens * room.cache_bytes > room.limit - room.cache - room.activations:
            return False
    return True


@compiled
def claim_cache(world: World, setting: Setting, node: int, request: int) -> bool:
    """Room for a request's next pass: whether it is there. If not, others make room once it has waited long enough."""
    if world.requests[request].output == 0:
        return True
    return _claim(world, setting, node, SERVING, request, world.requests[request].length)


@compiled
def claim_activations(world: World, setting: Setting, node: int, number: int) -> bool:
    """The same for all of a micro-batch's activations, which are then taken."""
    tokens = setting.rows * world.lengths[number]
    if not _claim(world, setting, node, TRAINING, NONE, tokens):
        return False
    for stage in range(setting.stages):
        room = world.memory.rooms[node * setting.stages + stage]
        room.activations += tokens * room.activation_bytes
        world.memory.activations[number * setting.stages + stage].where = HELD
        _note_peak(room)
    return True


@compiled
def take_cache(world: World, setting: Setting, node: int, request: int) -> None:
    """A request goes into a batch, for which there is room."""
    if world.requests[request].output > 0:
        _hold(world, setting, node, request, world.requests[request].length)


@compiled
def release_cache(world: World, setting: Setting, node: int, request: int) -> None:
    """A request needs its cache no more, or has lost it."""
    _hold(world, setting, node, request, -world.requests[request].held)


@compiled
def _hold(world: World, setting: Setting, node: int, request: int, tokens: int) -> None:
    world.requests[request].held += tokens
    for stage in range(setting.stages):
        room = world.memory.rooms[node * setting.stages + stage]
        room.cache += tokens * room.cache_bytes
        _note_peak(room)


@compiled
def _note_peak(room: Any) -> None:
    activations = room.activations + room.back
    room.peak_cache = max(room.peak_cache, room.cache)
    room.peak_activations = max(room.peak_activations, activations)
    room.peak = max(room.peak, room.cache + activations)


@compiled
def _claim(world: World, setting: Setting, node: int, kind: int, request: int, tokens: int) -> bool:
    """Look after a claim on all stages of a node; `request`: the one that claims and is no victim, NONE for training."""
    memory, now = world.memory, world.run[0].now
    claim = memory.claims[2 * node + kind]
    deadline = min(claim.since, now) + setting.max_wait
    granted, stage = True, 0
    while stage < setting.stages:
        at = node * setting.stages + stage
        room = memory.rooms[at]
        need = tokens * (room.cache_bytes if kind == SERVING else room.activation_bytes)
        free = room.limit - room.cache - room.activations
        movable = room.movable if setting.offload_rate > 0.0 else 0
        victim = _most_spare(world, node, request) if need > free else NONE
        cache = 0 if victim == NONE else world.requests[victim].held * room.cache_bytes
        todo = decide(free, need, room.leaving, movable, cache, now, deadline)
        if todo == OFFLOAD:
            _offload(world, setting, at)
        elif todo == PREEMPT:
            claim.preemptions += 1
            _preempt(world, setting, node, victim)
            claim.recomputed += world.requests[victim].length
        else:
            granted &= todo == RUN
            stage += 1
    if not granted:
        claim.since = min(claim.since, now)
    elif claim.since < math.inf:
        waited = now - claim.since
        if waited > 0.0:
            claim.waits += 1
            claim.waited += waited
            claim.longest = max(claim.longest, waited)
        claim.since = math.inf
    return granted


@compiled
def _most_spare(world: World, node: int, spared: int) -> int:
    """Of the requests that generate and are in no batch, the one with the most slack; NONE if there is none."""
    best, most, request = NONE, -math.inf, world.ready[node].head
    while request != NONE:
        state = world.requests[request]
        spare = spare_time(state.arrival, state.placed + state.predicted)
        if request != spared and (best == NONE or spare > most):
            best, most = request, spare
        request = state.next
    return best


@compiled
def _preempt(world: World, setting: Setting, node: int, request: int) -> None:
    """A request loses its cache: prompt and answer so far become its prompt, and it waits as a new one."""
    release_cache(world, setting, node, request)
    remove(world.ready[node], world.requests, request)
    state, leader = world.requests[request], world.nodes[node]
    state.cached, state.length = 0, state.prompt + state.produced
    leader.waiting = push(world.requests, leader.waiting, request)
    touch(world, node)


@compiled
def _offload(world: World, setting: Setting, at: int) -> None:
    """The activations whose backward comes last start on their way to the host."""
    memory = world.memory
    item: int = memory.movable[at].tail
    remove(memory.movable[at], memory.activations, item)
    append(memory.leaving[at], memory.activations, item)
    nbytes = _bytes(world, setting, at, item)
    room = memory.rooms[at]
    room.movable -= nbytes
    room.leaving += nbytes
    room.offloads += 1
    room.offloaded += nbytes
    memory.activations[item].where = LEAVING
    memory.activations[item].until = _transfer(world, setting, at, nbytes)


@compiled
def _transfer(world: World, setting: Setting, at: int, nbytes: int) -> float:
    """When so many bytes will have gone over the link of a stage, which takes one thing after the other [s]."""
    room = world.memory.rooms[at]
    room.link_free = max(room.link_free, world.run[0].now) + nbytes / setting.offload_rate
    end: float = room.link_free
    return end


@compiled
def _bytes(world: World, setting: Setting, at: int, item: int) -> int:
    length = world.lengths[item // setting.stages]
    nbytes: int = setting.rows * length * world.memory.rooms[at].activation_bytes
    return nbytes


@compiled
def move(world: World, setting: Setting, node: int) -> None:
    """End the ways that are over, and start to bring back what the next backward of each stage needs."""
    memory, now = world.memory, world.run[0].now
    for stage in range(setting.stages):
        at = node * setting.stages + stage
        room, leaving = memory.rooms[at], memory.leaving[at]
        while leaving.head != NONE and memory.activations[leaving.head].until <= now:
            item = take(leaving, memory.activations)
            nbytes = _bytes(world, setting, at, item)
            room.leaving -= nbytes
            room.activations -= nbytes
            memory.activations[item].where = AWAY
        number = world.queues[3 * at + BACKWARDS].head
        if number == NONE:
            continue
        item = number * setting.stages + stage
        activation = memory.activations[item]
        if activation.where == AWAY and room.back == 0:
            room.back = _bytes(world, setting, at, item)
            activation.where, activation.until = COMING, _transfer(world, setting, at, room.back)
            _note_peak(room)
        elif activation.where == COMING and activation.until <= now:
            activation.where = BACK


@compiled
def activations_there(world: World, setting: Setting, stage: int, number: int) -> bool:
    """Whether a backward finds its activations on the device."""
    where = world.memory.activations[number * setting.stages + stage].where
    return bool(where in (HELD, BACK))


@compiled
def may_leave(world: World, setting: Setting, at: int, stage: int, number: int) -> None:
    """A forward is over: its activations rest until the backward."""
    memory, item = world.memory, number * setting.stages + stage
    append(memory.movable[at], memory.activations, item)
    memory.rooms[at].movable += _bytes(world, setting, at, item)


@compiled
def must_stay(world: World, setting: Setting, at: int, stage: int, number: int) -> None:
    """A backward begins."""
    memory, item = world.memory, number * setting.stages + stage
    if memory.activations[item].where == HELD:
        remove(memory.movable[at], memory.activations, item)
        memory.rooms[at].movable -= _bytes(world, setting, at, item)


@compiled
def release_activations(world: World, setting: Setting, at: int, stage: int, number: int) -> None:
    """A backward is over."""
    item = number * setting.stages + stage
    room, activation = world.memory.rooms[at], world.memory.activations[item]
    if activation.where == BACK:
        room.back = 0
    else:
        room.activations -= _bytes(world, setting, at, item)
    activation.where = ABSENT


@compiled
def set_wake(world: World, setting: Setting, node: int) -> None:
    """When the node has to look again, should nothing end there before: a way or the patience of a claim ends."""
    memory, now, time = world.memory, world.run[0].now, math.inf
    for kind in (SERVING, TRAINING):
        deadline = memory.claims[2 * node + kind].since + setting.max_wait
        if deadline > now:
            time = min(time, deadline)
    for stage in range(setting.stages):
        at = node * setting.stages + stage
        if memory.leaving[at].head != NONE:
            time = min(time, memory.activations[memory.leaving[at].head].until)
        number = world.queues[3 * at + BACKWARDS].head
        if number != NONE:
            activation = memory.activations[number * setting.stages + stage]
            if activation.where == COMING:
                time = min(time, activation.until)
    set_timer(memory.wakes, node, time)


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
