"""The twin of `lemix_hpc.runtime.stage.worker`: picks, starts, gives way and hands on, between two calls of the loop.

A training pass that nobody disturbs is one stretch. When serving comes, the stretch is shortened to the next boundary
between two pieces at which training is not owed any time.
"""

from __future__ import annotations

import math

from lemix_hpc.policy import execution_rules
from lemix_hpc.policy.execution_rules import BACKWARD, COMMIT, FORWARD, NOTHING, SERVE
from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.policy.latency_tables import BACKWARD_PASS, FORWARD_PASS, SERVE_PASS, stage_seconds
from lemix_hpc.simulator.activations import activations_there, may_leave, must_stay, release_activations
from lemix_hpc.simulator.cluster_state import ClusterState, SimulationConfig, append, take
from lemix_hpc.simulator.dtypes import BACKWARDS, FORWARDS, NONE, STEPS
from lemix_hpc.simulator.latency_noise import spread
from lemix_hpc.simulator.memory import asked_for
from lemix_hpc.simulator.pairing_heap import pop, push
from lemix_hpc.simulator.pieces import ROUNDING, pieces_of, pieces_until
from lemix_hpc.simulator.tournament_tree import set_timer
from lemix_hpc.simulator.weight_updates import begin_step, commit_since, publish, ready_here, report

pick = compiled(execution_rules.pick)
debt_after = compiled(execution_rules.debt_after)
forward_limit = compiled(execution_rules.forward_limit)
reports_ahead = compiled(execution_rules.reports_ahead)


@inlined
def settle(cluster: ClusterState, config: SimulationConfig, node: int, stage: int) -> bool:
    """Everything of this instant is there: run what is to run next, or make what runs give way.

    Whether the stage has told the one before that an update is ready, which has to be looked at again.
    """
    at = node * config.stages + stage
    state = cluster.stages[at]
    if state.kind == SERVE:
        return False
    serve = _serve_since(cluster, at)
    if state.kind != NOTHING:
        if serve < math.inf and config.yield_training:
            _shorten(cluster, config, at)
        # What comes in the instant in which a stretch has begun comes behind that.
        return state.planned > 1 and _report_ahead(cluster, config, node, stage)
    if state.resting != NOTHING:
        if serve < math.inf and state.debt <= 0.0:
            _serve(cluster, config, node, stage)
        else:
            _resume(cluster, config, at, serve < math.inf)
        return _report_ahead(cluster, config, node, stage)
    reported = False
    while True:
        reported |= report(cluster, config, node, stage)
        commit, backward = commit_since(cluster, at, stage), _backward_since(cluster, config, at, stage)
        forward = _forward_since(cluster, config, at, stage)
        kind = pick(serve, commit, backward, forward, config.serving_first, state.debt > 0.0)
        if kind == FORWARD and not _has_memory(cluster, config, node, stage):
            kind = pick(serve, commit, backward, math.inf, config.serving_first, state.debt > 0.0)
        if kind != COMMIT:
            break
        publish(cluster, config, node, stage)
        serve = _serve_since(cluster, at)
    if kind == SERVE:
        _serve(cluster, config, node, stage)
    elif kind != NOTHING:
        _train(cluster, config, node, stage, kind, serve < math.inf)
    return reported | _report_ahead(cluster, config, node, stage)


@inlined
def _report_ahead(cluster: ClusterState, config: SimulationConfig, node: int, stage: int) -> bool:
    """Report an update that is ready if the last piece of a training pass begins now. Whether the stage before has heard."""
    state, now = cluster.stages[node * config.stages + stage], cluster.run[0].now
    if last_piece(cluster, config, node, stage) > now + ROUNDING * state.piece:
        return False
    return report(cluster, config, node, stage)


@inlined
def last_piece(cluster: ClusterState, config: SimulationConfig, node: int, stage: int) -> float:
    """When the last piece of a training pass begins before which a stage reports an update [s]; inf if there is none, or it
    has begun."""
    state = cluster.stages[node * config.stages + stage]
    if state.kind in (NOTHING, SERVE) or state.planned < state.left:
        return math.inf
    if not reports_ahead(stage, config.stages, state.kind == BACKWARD, config.sync):
        return math.inf
    if ready_here(cluster, config, node, stage) <= state.told:
        return math.inf
    begins: float = state.start + (state.planned - 1) * state.piece
    return begins if begins >= cluster.run[0].now - ROUNDING * state.piece else math.inf


@compiled
def _has_memory(cluster: ClusterState, config: SimulationConfig, node: int, stage: int) -> bool:
    """Whether the next forward can run: on the first stage it first needs room on all of them, for which it asks."""
    if not config.limited or stage > 0:
        return True
    return bool(asked_for(cluster, config, node, cluster.queues[3 * node * config.stages + FORWARDS].head))


@inlined
def _serve_since(cluster: ClusterState, at: int) -> float:
    """Since when the next batch is there, if all updates that came before it are in force."""
    head = cluster.stages[at].serves
    if head == NONE or cluster.batches[head].after_updates != cluster.stages[at].went:
        return math.inf
    since: float = cluster.batches[head].since
    return since


@inlined
def _forward_since(cluster: ClusterState, config: SimulationConfig, at: int, stage: int) -> float:
    """Since when the next micro-batch is there. Forwards wait for updates that are about to be committed: with a flush from
    the end of a group on, else from the stage's report on."""
    head, state = cluster.queues[3 * at + FORWARDS].head, cluster.stages[at]
    if head == NONE:
        return math.inf
    if state.opened > state.version if config.sync else state.told > state.version:
        return math.inf
    size = cluster.groups[cluster.micro_batches[head].group].size
    if state.between >= forward_limit(stage, config.in_flight, size, config.gpipe):
        return math.inf
    since: float = cluster.micro_batches[head].since
    return since


@inlined
def _backward_since(cluster: ClusterState, config: SimulationConfig, at: int, stage: int) -> float:
    """Since when the next gradient is there. Under GPipe it waits for all forwards of its group, and without a flush for an
    update that is about to be committed: no batch behind that may wait for the pass."""
    head, state = cluster.queues[3 * at + BACKWARDS].head, cluster.stages[at]
    if head == NONE or (not config.sync and state.told > state.version):
        return math.inf
    if config.limited and not activations_there(cluster, config, stage, head):
        return math.inf
    group = cluster.micro_batches[head].group
    if config.gpipe and cluster.at_stage[group, stage].forwards < cluster.groups[group].size:
        return math.inf
    since: float = cluster.micro_batches[head].since
    return since


@inlined
def _serve(cluster: ClusterState, config: SimulationConfig, node: int, stage: int) -> None:
    at, now = node * config.stages + stage, cluster.run[0].now
    state = cluster.stages[at]
    number: int = state.serves
    batch = cluster.batches[number]
    state.serves = pop(cluster.batches, number)
    if stage == 0:
        batch.version = state.version
    elif batch.version != state.version:
        raise RuntimeError("a batch met two weight versions")
    seconds = stage_seconds(
        cluster.times, node, SERVE_PASS, stage, batch.tokens, batch.squares, batch.cached, batch.prefills
    )
    first = cluster.members[number, 0]
    seconds *= spread(config, first, cluster.requests[first].produced, stage, SERVE_PASS)
    state.kind, state.item, state.start, state.left = SERVE, number, now + config.between, 1
    state.planned, state.piece = 1, seconds
    set_timer(cluster.timers, at, state.start + seconds)


@inlined
def _train(cluster: ClusterState, config: SimulationConfig, node: int, stage: int, kind: int, waiting: bool) -> None:
    """Start a forward or a backward; `waiting`: serving is there all the same."""
    at = node * config.stages + stage
    state = cluster.stages[at]
    queue = cluster.queues[3 * at + (FORWARDS if kind == FORWARD else BACKWARDS)]
    micro_batch = take(queue, cluster.micro_batches)
    direction = FORWARD_PASS if kind == FORWARD else BACKWARD_PASS
    if kind == FORWARD:
        state.between += 1
    elif config.limited:
        must_stay(cluster, config, stage, micro_batch)
    length = cluster.lengths[micro_batch]
    tokens, squares = config.rows * length, float(config.rows) * length * length
    prefills = config.rows if length > 1 else 0
    seconds = stage_seconds(cluster.times, node, direction, stage, tokens, squares, 0.0, prefills)
    seconds *= spread(config, cluster.requests.size + micro_batch, 0, stage, direction)
    state.resting, state.resting_item = kind, micro_batch
    pieces = pieces_of(config, kind, stage)
    state.resting_piece, state.resting_left = seconds / pieces, pieces
    _resume(cluster, config, at, waiting)


@inlined
def _resume(cluster: ClusterState, config: SimulationConfig, at: int, waiting: bool) -> None:
    """Run on with a training pass, to its end or as far as it gets while serving waits."""
    state = cluster.stages[at]
    state.kind, state.item, state.start = state.resting, state.resting_item, cluster.run[0].now + config.between
    state.piece, state.left, state.planned = state.resting_piece, state.resting_left, state.resting_left
    state.resting = NOTHING
    if waiting and config.yield_training:
        _shorten(cluster, config, at)
    set_timer(cluster.timers, at, state.start + state.planned * state.piece)


@inlined
def _shorten(cluster: ClusterState, config: SimulationConfig, at: int) -> None:
    """Let the training pass that runs rest at the first boundary from now on where training is not owed time."""
    state, now = cluster.stages[at], cluster.run[0].now
    if state.piece <= 0.0:
        return
    pieces = pieces_until(state, now)
    if state.debt > 0.0:
        pieces = max(pieces, math.ceil(state.debt / ((1.0 - config.minimum_share) * state.piece) - ROUNDING))
    if pieces < state.planned:
        state.planned = pieces
        set_timer(cluster.timers, at, max(now, state.start + pieces * state.piece))


@inlined
def end_stretch(cluster: ClusterState, config: SimulationConfig, at: int) -> bool:
    """The stretch that runs has come to its end: whether its pass has, too. If not, the pass rests."""
    state = cluster.stages[at]
    seconds, serving = cluster.run[0].now - state.start, state.kind == SERVE
    state.debt = debt_after(state.debt, config.minimum_share, seconds if serving else 0.0, 0.0 if serving else seconds)
    set_timer(cluster.timers, at, math.inf)
    complete = state.planned == state.left
    if not complete:
        state.resting, state.resting_item = state.kind, state.item
        state.resting_piece, state.resting_left = state.piece, state.left - state.planned
    state.kind = NOTHING
    return complete


@compiled
def come(cluster: ClusterState, number: int, at: int) -> None:
    """A batch comes to a stage. Of those that wait there, the one with the smallest key goes first."""
    batch, state, run = cluster.batches[number], cluster.stages[at], cluster.run[0]
    batch.since, batch.after_updates, batch.order = run.now, state.came, run.came
    run.came += 1
    state.serves = push(cluster.batches, state.serves, number)


@inlined
def forward_done(cluster: ClusterState, config: SimulationConfig, node: int, stage: int, number: int) -> None:
    """A micro-batch goes to the next stage; on the last one its own backward is ready."""
    at, micro_batch = node * config.stages + stage, cluster.micro_batches[number]
    cluster.at_stage[micro_batch.group, stage].forwards += 1
    if config.limited:
        may_leave(cluster, config, at, stage, number)
    micro_batch.since = cluster.run[0].now
    if stage == config.stages - 1:
        append(cluster.queues[3 * at + BACKWARDS], cluster.micro_batches, number)
    else:
        append(cluster.queues[3 * (at + 1) + FORWARDS], cluster.micro_batches, number)


@compiled
def backward_done(cluster: ClusterState, config: SimulationConfig, node: int, stage: int, number: int) -> None:
    """The gradient goes to the stage before; a group that is through on this stage and behind is sealed."""
    at, micro_batch = node * config.stages + stage, cluster.micro_batches[number]
    group = micro_batch.group
    cluster.stages[at].between -= 1
    if config.limited:
        release_activations(cluster, config, at, stage, number)
    cluster.at_stage[group, stage].backwards += 1
    if stage > 0:
        micro_batch.since = cluster.run[0].now
        append(cluster.queues[3 * (at - 1) + BACKWARDS], cluster.micro_batches, number)
    while cluster.at_stage[group, stage].backwards == cluster.groups[group].size and (
        stage == config.stages - 1 or cluster.at_stage[group, stage].sealed_behind
    ):
        if stage == 0:
            append(cluster.queues[3 * node * config.stages + STEPS], cluster.groups, group)
            begin_step(cluster, config, node)
            return
        stage -= 1
        cluster.at_stage[group, stage].sealed_behind = True
