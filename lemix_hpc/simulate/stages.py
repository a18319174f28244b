"""What a stage does, as `lemix_hpc.runtime.stage`: it picks, starts, gives way and hands on, between two calls of the loop.

A training pass that nobody disturbs is one stretch. When serving comes, the stretch is shortened to the next boundary
between two pieces at which training is not owed any time.
"""

from __future__ import annotations

import math

from lemix_hpc.policy import stage_queue
from lemix_hpc.policy.compiled import compiled, inlined
from lemix_hpc.policy.stage_queue import COMMIT, FORWARD, NOTHING, SERVE
from lemix_hpc.policy.times import BACKWARD_PASS, FORWARD_PASS, SERVE_PASS, stage_seconds
from lemix_hpc.simulate.heap import pop, push
from lemix_hpc.simulate.memory import activations_there, claim_activations, may_leave, must_stay, release_activations
from lemix_hpc.simulate.noise import spread
from lemix_hpc.simulate.rows import BACKWARDS, COMMITS, FORWARDS, NONE
from lemix_hpc.simulate.timers import set_timer
from lemix_hpc.simulate.world import Setting, World, add_span, append, take

pick = compiled(stage_queue.pick)
debt_after = compiled(stage_queue.debt_after)
forward_limit = compiled(stage_queue.forward_limit)

ROUNDING = 1e-9
"""Pieces by which a time may be off a boundary and still count as on it."""


@compiled
def settle(world: World, setting: Setting, node: int, stage: int) -> None:
    """Everything of this instant is there: run what is to run next, or make what runs give way."""
    at = node * setting.stages + stage
    state = world.stages[at]
    if state.kind == SERVE:
        return
    serve = _serve_since(world, at)
    if state.kind != NOTHING:
        if serve < math.inf and setting.yield_training:
            _shorten(world, setting, at)
        return
    if state.resting != NOTHING:
        if serve < math.inf and state.debt <= 0.0:
            _serve(world, setting, node, stage)
        else:
            _resume(world, setting, at, serve < math.inf)
        return
    while True:
        commit, backward = _commit_since(world, at, stage), _backward_since(world, setting, at, stage)
        forward = _forward_since(world, setting, at, stage)
        kind = pick(serve, commit, backward, forward, setting.serving_first, state.debt > 0.0)
        if kind == FORWARD and not _has_memory(world, setting, node, stage):
            # The claim may have sent away what a backward needs.
            backward = _backward_since(world, setting, at, stage)
            kind = pick(serve, commit, backward, math.inf, setting.serving_first, state.debt > 0.0)
        if kind != COMMIT:
            break
        _commit(world, setting, node, stage)
        serve = _serve_since(world, at)
    if kind == SERVE:
        _serve(world, setting, node, stage)
    elif kind != NOTHING:
        _train(world, setting, node, stage, kind, serve < math.inf)


@compiled
def _has_memory(world: World, setting: Setting, node: int, stage: int) -> bool:
    """Whether the next forward can run: on the first stage it first needs room on all of them."""
    if not setting.limited or stage > 0:
        return True
    head = world.queues[3 * node * setting.stages + FORWARDS].head
    return bool(claim_activations(world, setting, node, head))


@inlined
def _serve_since(world: World, at: int) -> float:
    """Since when the next batch is there, if its epoch is open."""
    head = world.stages[at].serves
    if head == NONE or world.batches[head].epoch != world.stages[at].went:
        return math.inf
    since: float = world.batches[head].since
    return since


@inlined
def _forward_since(world: World, setting: Setting, at: int, stage: int) -> float:
    head = world.queues[3 * at + FORWARDS].head
    if head == NONE or world.micro_batches[head].epoch != world.stages[at].went:
        return math.inf
    size = world.groups[world.micro_batches[head].group].size
    if world.stages[at].between >= forward_limit(stage, setting.stages, size, setting.gpipe):
        return math.inf
    since: float = world.micro_batches[head].since
    return since


@inlined
def _backward_since(world: World, setting: Setting, at: int, stage: int) -> float:
    """Since when the next gradient is there; under GPipe it waits for all forwards of its group."""
    head = world.queues[3 * at + BACKWARDS].head
    if head == NONE:
        return math.inf
    if setting.limited and not activations_there(world, setting, stage, head):
        return math.inf
    group = world.micro_batches[head].group
    if setting.gpipe and world.at_stage[group, stage].forwards < world.groups[group].size:
        return math.inf
    since: float = world.micro_batches[head].since
    return since


@inlined
def _commit_since(world: World, at: int, stage: int) -> float:
    """Since when a weight update is there. The first stage decides on them; elsewhere all work in front comes first."""
    head = world.queues[3 * at + COMMITS].head
    if head == NONE:
        return math.inf
    if stage > 0:
        went = world.stages[at].went
        batch, micro_batch = world.stages[at].serves, world.queues[3 * at + FORWARDS].head
        if batch != NONE and world.batches[batch].epoch == went:
            return math.inf
        if micro_batch != NONE and world.micro_batches[micro_batch].epoch == went:
            return math.inf
    since: float = world.groups[head].since
    return since


@compiled
def _commit(world: World, setting: Setting, node: int, stage: int) -> None:
    """Step the weights, which takes no time, and tell the next stage in order with the activations."""
    at, run = node * setting.stages + stage, world.run[0]
    state = world.stages[at]
    group = take(world.queues[3 * at + COMMITS], world.groups)
    add_span(world, node, stage, NONE, COMMIT, run.now, run.now, state.version, NONE)
    state.version += 1
    if stage == 0:
        run.steps += 1
        run.begun -= 1
        world.groups[group].step = state.version
    else:
        state.went += 1
    if stage < setting.stages - 1:
        world.groups[group].since = run.now
        world.stages[at + 1].came += 1
        append(world.queues[3 * (at + 1) + COMMITS], world.groups, group)


@inlined
def _serve(world: World, setting: Setting, node: int, stage: int) -> None:
    at, now = node * setting.stages + stage, world.run[0].now
    state = world.stages[at]
    number: int = state.serves
    batch = world.batches[number]
    state.serves = pop(world.batches, number)
    if stage == 0:
        batch.version = state.version
    elif batch.version != state.version:
        raise RuntimeError("a batch met two weight versions")
    seconds = stage_seconds(
        world.times, node, SERVE_PASS, stage, batch.tokens, batch.squares, batch.cached, batch.prefills
    )
    first = world.members[number, 0]
    seconds *= spread(setting, first, world.requests[first].produced, stage, SERVE_PASS)
    state.kind, state.item, state.start, state.left = SERVE, number, now, 1
    state.planned, state.piece = 1, seconds
    set_timer(world.timers, at, now + seconds)


@inlined
def _train(world: World, setting: Setting, node: int, stage: int, kind: int, waiting: bool) -> None:
    """Start a forward or a backward; `waiting`: serving is there all the same."""
    at = node * setting.stages + stage
    state = world.stages[at]
    queue = world.queues[3 * at + (FORWARDS if kind == FORWARD else BACKWARDS)]
    micro_batch = take(queue, world.micro_batches)
    direction = FORWARD_PASS if kind == FORWARD else BACKWARD_PASS
    if kind == FORWARD:
        state.between += 1
    elif setting.limited:
        must_stay(world, setting, at, stage, micro_batch)
    length = world.lengths[micro_batch]
    tokens, squares = setting.rows * length, float(setting.rows) * length * length
    prefills = setting.rows if length > 1 else 0
    seconds = stage_seconds(world.times, node, direction, stage, tokens, squares, 0.0, prefills)
    seconds *= spread(setting, world.requests.size + micro_batch, 0, stage, direction)
    state.resting, state.resting_item = kind, micro_batch
    state.resting_piece, state.resting_left = seconds / setting.pieces, setting.pieces
    _resume(world, setting, at, waiting)


@inlined
def _resume(world: World, setting: Setting, at: int, waiting: bool) -> None:
    """Run on with a training pass, to its end or as far as it gets while serving waits."""
    state = world.stages[at]
    state.kind, state.item, state.start = state.resting, state.resting_item, world.run[0].now
    state.piece, state.left, state.planned = state.resting_piece, state.resting_left, state.resting_left
    state.resting = NOTHING
    if waiting and setting.yield_training:
        _shorten(world, setting, at)
    set_timer(world.timers, at, state.start + state.planned * state.piece)


@inlined
def _shorten(world: World, setting: Setting, at: int) -> None:
    """Let the training pass that runs rest at the first boundary from now on where training is not owed time."""
    state, now = world.stages[at], world.run[0].now
    if state.piece <= 0.0:
        return
    pieces = max(1, math.ceil((now - state.start) / state.piece - ROUNDING))
    if state.debt > 0.0:
        pieces = max(pieces, math.ceil(state.debt / ((1.0 - setting.minimum_share) * state.piece) - ROUNDING))
    if pieces < state.planned:
        state.planned = pieces
        set_timer(world.timers, at, max(now, state.start + pieces * state.piece))


@inlined
def end_stretch(world: World, setting: Setting, at: int) -> bool:
    """The stretch that runs has come to its end: whether its pass has, too. If not, the pass rests."""
    state = world.stages[at]
    seconds, serving = world.run[0].now - state.start, state.kind == SERVE
    state.debt = debt_after(state.debt, setting.minimum_share, seconds if serving else 0.0, 0.0 if serving else seconds)
    set_timer(world.timers, at, math.inf)
    complete = state.planned == state.left
    if not complete:
        state.resting, state.resting_item = state.kind, state.item
        state.resting_piece, state.resting_left = state.piece, state.left - state.planned
    state.kind = NOTHING
    return complete


@compiled
def come(world: World, number: int, at: int) -> None:
    """A batch comes to a stage. Of those that wait there, the one with the smallest key goes first."""
    batch, state, run = world.batches[number], world.stages[at], world.run[0]
    batch.since, batch.epoch, batch.order = run.now, state.came, run.came
    run.came += 1
    state.serves = push(world.batches, state.serves, number)


@inlined
def forward_done(world: World, setting: Setting, node: int, stage: int, number: int) -> None:
    """A micro-batch goes to the next stage; on the last one its own backward is ready."""
    at, micro_batch = node * setting.stages + stage, world.micro_batches[number]
    world.at_stage[micro_batch.group, stage].forwards += 1
    if setting.limited:
        may_leave(world, setting, at, stage, number)
    micro_batch.since = world.run[0].now
    if stage == setting.stages - 1:
        append(world.queues[3 * at + BACKWARDS], world.micro_batches, number)
    else:
        micro_batch.epoch = world.stages[at + 1].came
        append(world.queues[3 * (at + 1) + FORWARDS], world.micro_batches, number)


@compiled
def backward_done(world: World, setting: Setting, node: int, stage: int, number: int) -> None:
    """The gradient goes to the stage before; a group that is through on this stage and behind is sealed."""
    at, micro_batch = node * setting.stages + stage, world.micro_batches[number]
    group = micro_batch.group
    world.stages[at].between -= 1
    if setting.limited:
        release_activations(world, setting, at, stage, number)
    world.at_stage[group, stage].backwards += 1
    if stage > 0:
        micro_batch.since = world.run[0].now
        append(world.queues[3 * (at - 1) + BACKWARDS], world.micro_batches, number)
    while world.at_stage[group, stage].backwards == world.groups[group].size and (
        stage == setting.stages - 1 or world.at_stage[group, stage].sealed_behind
    ):
        if stage == 0:
            world.groups[group].since = world.run[0].now
            append(world.queues[3 * node * setting.stages + COMMITS], world.groups, group)
            return
        stage -= 1
        world.at_stage[group, stage].sealed_behind = True
