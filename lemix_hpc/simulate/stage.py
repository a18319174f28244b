"""What a stage does, as `lemix_hpc.runtime.stage.worker`: it picks, starts, gives way and hands on, between two calls of the loop.

A training pass that nobody disturbs is one stretch. When serving comes, the stretch is shortened to the next boundary
between two pieces at which training is not owed any time.
"""

from __future__ import annotations

import math

from lemix_hpc.policy import execution_rules
from lemix_hpc.policy.execution_rules import COMMIT, FORWARD, NOTHING, SERVE
from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.policy.latency_tables import BACKWARD_PASS, FORWARD_PASS, SERVE_PASS, stage_seconds
from lemix_hpc.simulate.cluster_state import Setting, World, add_span, append, take, touch
from lemix_hpc.simulate.dtypes import BACKWARDS, COPY, FORWARDS, NONE, STEPS
from lemix_hpc.simulate.latency_noise import spread
from lemix_hpc.simulate.memory import activations_there, claim_activations, may_leave, must_stay, release_activations
from lemix_hpc.simulate.pairing_heap import pop, push
from lemix_hpc.simulate.tournament_tree import set_timer

pick = compiled(execution_rules.pick)
debt_after = compiled(execution_rules.debt_after)
forward_limit = compiled(execution_rules.forward_limit)

ROUNDING = 1e-9
"""Pieces by which a time may be off a boundary and still count as on it."""


@compiled
def settle(world: World, setting: Setting, node: int, stage: int) -> bool:
    """Everything of this instant is there: run what is to run next, or make what runs give way.

    Whether the stage has told the one before that an update is ready, which has to be looked at again.
    """
    at = node * setting.stages + stage
    state = world.stages[at]
    if state.kind == SERVE:
        return False
    serve = _serve_since(world, at)
    if state.kind != NOTHING:
        if serve < math.inf and setting.yield_training:
            _shorten(world, setting, at)
        return False
    if state.resting != NOTHING:
        if serve < math.inf and state.debt <= 0.0:
            _serve(world, setting, node, stage)
        else:
            _resume(world, setting, at, serve < math.inf)
        return False
    reported = False
    while True:
        reported |= _report(world, setting, node, stage)
        commit, backward = _commit_since(world, at, stage), _backward_since(world, setting, at, stage)
        forward = _forward_since(world, setting, at, stage)
        kind = pick(serve, commit, backward, forward, setting.serving_first, state.debt > 0.0)
        if kind == FORWARD and not _has_memory(world, setting, node, stage):
            # The claim may have sent away what a backward needs.
            backward = _backward_since(world, setting, at, stage)
            kind = pick(serve, commit, backward, math.inf, setting.serving_first, state.debt > 0.0)
        if kind != COMMIT:
            break
        _publish(world, setting, node, stage)
        serve = _serve_since(world, at)
    if kind == SERVE:
        _serve(world, setting, node, stage)
    elif kind != NOTHING:
        _train(world, setting, node, stage, kind, serve < math.inf)
    return reported


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
    """Since when the next micro-batch is there. Forwards wait for updates that have come, and for those about to be
    committed: with a flush from the end of a group on, else from their report on."""
    head, state = world.queues[3 * at + FORWARDS].head, world.stages[at]
    if head == NONE or state.came > state.went:
        return math.inf
    if state.opened > state.version if setting.sync else state.told > state.version:
        return math.inf
    size = world.groups[world.micro_batches[head].group].size
    if state.between >= forward_limit(stage, setting.stages, size, setting.gpipe):
        return math.inf
    since: float = world.micro_batches[head].since
    return since


@inlined
def _backward_since(world: World, setting: Setting, at: int, stage: int) -> float:
    """Since when the next gradient is there. Under GPipe it waits for all forwards of its group, and without a flush for an
    update that is about to be committed: no batch behind that may wait for the pass."""
    head, state = world.queues[3 * at + BACKWARDS].head, world.stages[at]
    if head == NONE or (not setting.sync and state.told > state.version):
        return math.inf
    if setting.limited and not activations_there(world, setting, stage, head):
        return math.inf
    group = world.micro_batches[head].group
    if setting.gpipe and world.at_stage[group, stage].forwards < world.groups[group].size:
        return math.inf
    since: float = world.micro_batches[head].since
    return since


@inlined
def _report(world: World, setting: Setting, node: int, stage: int) -> bool:
    """Report an update that is ready here and behind, which takes no work: to the stage before, or on the first one to
    itself. Whether the stage before has heard of it."""
    at = node * setting.stages + stage
    state = world.stages[at]
    # A step is prepared when the one before is in force, a copy when it is there.
    ready = state.opened if node < setting.servers else min(state.opened, state.version + 1)
    if stage < setting.stages - 1:
        ready = min(ready, state.behind)
    if ready <= state.told:
        return False
    state.told, state.told_since = ready, world.run[0].now
    if stage > 0:
        world.stages[at - 1].behind = ready
    return stage > 0


@inlined
def _commit_since(world: World, at: int, stage: int) -> float:
    """Since when an update is there to be published. The first stage decides on them; elsewhere the batches in front of the
    marker come first."""
    state = world.stages[at]
    if stage == 0:
        return state.told_since if state.told > state.version else math.inf
    if state.came == state.went or (state.serves != NONE and world.batches[state.serves].epoch == state.went):
        return math.inf
    since: float = world.markers[at, state.went % world.markers.shape[1]].since
    return since


@compiled
def _publish(world: World, setting: Setting, node: int, stage: int) -> None:
    """Put an update in force, which takes no time, and tell the next stage in order with the activations."""
    at, now = node * setting.stages + stage, world.run[0].now
    state, copied = world.stages[at], node < setting.servers
    add_span(world, node, stage, NONE, COPY if copied else COMMIT, now, now, state.version, NONE)
    if stage == 0:
        state.version = state.told
    else:
        state.version = world.markers[at, state.went % world.markers.shape[1]].version
        state.went += 1
    if stage < setting.stages - 1:
        _mark(world, at + 1, state.version)
    if not copied:
        if stage == 0:
            _stepped(world, setting, node)
        if state.version % setting.copy_every == 0:
            _copy(world, setting, node, stage)


@compiled
def _mark(world: World, at: int, version: int) -> None:
    """A commit marker comes to a stage."""
    state, room = world.stages[at], world.markers.shape[1]
    if state.came - state.went == room:
        raise IndexError("no room for a weight update")
    marker = world.markers[at, state.came % room]
    marker.version, marker.since = version, world.run[0].now
    state.came += 1


@compiled
def _stepped(world: World, setting: Setting, node: int) -> None:
    """The step of a node's oldest group is in force on the first stage; the next one begins."""
    at, run = node * setting.stages, world.run[0]
    group = take(world.queues[3 * at + STEPS], world.groups)
    world.groups[group].step = world.stages[at].version
    run.steps += 1
    run.begun -= 1
    _begin_step(world, setting, node)


@compiled
def _begin_step(world: World, setting: Setting, node: int) -> None:
    """Let all stages prepare the next step, if there is one and none is open."""
    at = node * setting.stages
    first = world.stages[at]
    if first.opened > first.version or world.queues[3 * at + STEPS].head == NONE:
        return
    for stage in range(setting.stages):
        world.stages[at + stage].opened = first.version + 1


@compiled
def _copy(world: World, setting: Setting, trainer: int, stage: int) -> None:
    """Serving nodes get the weights of a training node's stage: trainers take turns, as in `lemix_hpc.policy.rules.Split`."""
    trainers = setting.nodes - setting.servers
    for node in range(setting.servers):
        if setting.servers + node % trainers == trainer:
            world.stages[node * setting.stages + stage].opened = world.stages[trainer * setting.stages + stage].version
            touch(world, node)


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
            append(world.queues[3 * node * setting.stages + STEPS], world.groups, group)
            _begin_step(world, setting, node)
            return
        stage -= 1
        world.at_stage[group, stage].sealed_behind = True
