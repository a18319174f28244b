"""The event loop: what happens next, until everything is done.

What happens at the same time is taken in a fixed order: passes that end, by stage; nodes whose memory or next batch is to
be looked at again, by number; requests that arrive, by number; the policy's tick; groups that are offered. Messages take no
time: only when all of that is known do leaders form batches, and stages pick what to run next.
"""

from __future__ import annotations

import math

from lemix_hpc.policy.execution_rules import BACKWARD, SERVE
from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.policy.rules import Rules
from lemix_hpc.policy.state import State
from lemix_hpc.simulator.activations import move
from lemix_hpc.simulator.batch_share import note_trained
from lemix_hpc.simulator.cluster_state import ClusterState, SimulationConfig, add_span, touch
from lemix_hpc.simulator.dtypes import FINISHED, NONE
from lemix_hpc.simulator.leader import free_batch, next_due, supply_first_stage, take_results
from lemix_hpc.simulator.memory import claim_activations, next_wake
from lemix_hpc.simulator.pacing import is_paced, note_first_stage
from lemix_hpc.simulator.pairing_heap import pop
from lemix_hpc.simulator.scheduler_rank import (
    DONE,
    GOING,
    MEASURE,
    NEED_SLOTS,
    NEED_SPACE,
    STUCK,
    arrive,
    full,
    look_again,
    next_tick,
    note_served,
    supply_training,
    tell_finished,
    tell_passed,
)
from lemix_hpc.simulator.stage import backward_done, come, end_stretch, forward_done, last_piece, settle
from lemix_hpc.simulator.tournament_tree import earliest, set_timer

RESOLUTION = 1e-9
"""The policy's ticks come at most once in so many seconds, whatever the rounding of their times."""


@compiled
def advance(cluster: ClusterState, config: SimulationConfig, state: State, rules: Rules) -> int:
    """Run on until everything is done or the caller has to make room; then call again. What is asked of the caller."""
    run, timers = cluster.run[0], cluster.timers
    room = 2 * config.max_requests + (config.stages + 4) * config.stages + config.nodes
    while True:
        at = earliest(timers)
        ends = timers.due[at]
        request = _next_arrival(cluster)
        arrives = math.inf if request == NONE else cluster.requests[request].arrival
        ticks = max(next_tick(state), run.ticked + RESOLUTION)
        wakes = _next_wake(cluster, config)
        time = min(ends, arrives, ticks, wakes)
        if cluster.spans.size - run.spans < room or (config.logs and cluster.events.size - run.events < room):
            return NEED_SPACE
        if time > run.now:
            asked = supply_training(cluster, config, state, rules)
            if asked != GOING:
                return asked
            if run.changed > 0:
                node = cluster.changed[run.first_changed]
                run.first_changed = (run.first_changed + 1) % config.nodes
                run.changed -= 1
                _settle_node(cluster, config, node)
                continue
            if time == math.inf or _over(cluster):
                return DONE if _over(cluster) else STUCK
            run.now = time
        if ends <= run.now:
            if config.measures and not run.measured and _teaches(cluster, config, at):
                run.measured = True
                return MEASURE
            run.measured = False
            _end(cluster, config, state, rules, at)
        elif wakes <= run.now:
            _wake(cluster)
        elif arrives <= run.now:
            if full(state, 1):
                return NEED_SLOTS
            _take_arrival(cluster, request)
            arrive(cluster, config, state, rules, request)
        else:
            run.ticked = run.now
            look_again(cluster, config, state, rules)


@inlined
def _teaches(cluster: ClusterState, config: SimulationConfig, at: int) -> bool:
    """Whether the policy hears how long a pass took that ends now on a stage: training of each one, a batch of all at once."""
    work = cluster.stages[at]
    through = work.kind != SERVE or at % config.stages == config.stages - 1
    return bool(through and work.planned == work.left)


@inlined
def _over(cluster: ClusterState) -> bool:
    """Whether everything is done."""
    run = cluster.run[0]
    return bool(run.unserved == 0 and run.closed and run.begun == 0)


@inlined
def _next_wake(cluster: ClusterState, config: SimulationConfig) -> float:
    """When the next node has to be looked at although nothing has come to it."""
    if not _wakes(config):
        return math.inf
    wakes = cluster.wakes
    time: float = wakes.due[earliest(wakes)]
    return time


@inlined
def _wakes(config: SimulationConfig) -> bool:
    """Whether nodes are looked at although nothing has come to them: for memory, batches that are due, and updates that later
    stages report before a training pass ends."""
    return config.limited or config.paced or config.stages > 1


@compiled
def _wake(cluster: ClusterState) -> None:
    wakes = cluster.wakes
    node = earliest(wakes)
    set_timer(wakes, node, math.inf)
    touch(cluster, node)


@inlined
def _next_arrival(cluster: ClusterState) -> int:
    """The request that arrives next: from the workload, or a later turn that an answer has called for."""
    run, requests = cluster.run[0], cluster.requests
    listed: int = run.next_arrival
    due: int = run.due
    if listed == run.listed:
        return due
    return due if due != NONE and requests[due].arrival < requests[listed].arrival else listed


@inlined
def _take_arrival(cluster: ClusterState, request: int) -> None:
    run = cluster.run[0]
    if request == run.due:
        run.due = pop(cluster.requests, request)
    else:
        run.next_arrival += 1


@compiled
def _settle_node(cluster: ClusterState, config: SimulationConfig, node: int) -> None:
    """Everything of this instant has come to a node."""
    cluster.nodes[node].changed = False
    if config.limited:
        move(cluster, config, node)
    supply_first_stage(cluster, config, node)
    if config.limited:
        claim_activations(cluster, config, node)
        if cluster.nodes[node].changed:  # caches were taken away for it: there may be enough for others, too
            supply_first_stage(cluster, config, node)
    for stage in range(config.stages):
        if settle(cluster, config, node, stage):
            touch(cluster, node)
    wake = math.inf
    if is_paced(config, node):
        note_first_stage(cluster, config, node)
        wake = next_due(cluster, config, node)
    if config.limited:
        wake = min(wake, next_wake(cluster, config, node))
    for stage in range(1, config.stages):
        begins = last_piece(cluster, config, node, stage)
        wake = min(wake, begins if begins > cluster.run[0].now else math.inf)
    if _wakes(config):
        set_timer(cluster.wakes, node, wake)


@inlined
def _end(cluster: ClusterState, config: SimulationConfig, state: State, rules: Rules, at: int) -> None:
    """A stretch of work ends on a stage."""
    node, stage = at // config.stages, at % config.stages
    work = cluster.stages[at]
    kind, item = work.kind, work.item
    touch(cluster, node)
    _record(cluster, config, node, stage)
    if kind != SERVE:
        work.trained += cluster.run[0].now - work.start
    if not end_stretch(cluster, config, at):
        return
    if is_paced(config, node):
        note_trained(cluster, config, node, work.trained)
    work.trained = 0.0
    if kind == SERVE:
        _batch_done(cluster, config, state, rules, node, stage, item)
        return
    if kind == BACKWARD:
        backward_done(cluster, config, node, stage, item)
    else:
        forward_done(cluster, config, node, stage, item)
    task, now = cluster.requests.size + item, cluster.run[0].now
    tell_passed(cluster, config, state, rules, node, stage, task, work.start, now, kind == BACKWARD)
    if kind == BACKWARD and stage == 0:
        tell_finished(cluster, config, state, rules, node, task)


@compiled
def _batch_done(
    cluster: ClusterState, config: SimulationConfig, state: State, rules: Rules, node: int, stage: int, number: int
) -> None:
    """The scheduler hears of the pass before it hears of its outcome."""
    last, members = stage == config.stages - 1, cluster.members[number]
    size = cluster.batches[number].size
    cluster.took[number, stage] = cluster.stages[node * config.stages + stage].piece
    if stage == 0:
        cluster.nodes[node].at_first_stage -= 1
    for position in range(size):
        note_served(cluster, config, state, rules, node, stage, members[position])
    if not last:
        come(cluster, number, node * config.stages + stage + 1)
        return
    take_results(cluster, config, node, number)
    for position in range(size):
        if cluster.requests[members[position]].outcome == FINISHED:
            tell_finished(cluster, config, state, rules, node, members[position])
    free_batch(cluster, node, number)


@compiled
def _record(cluster: ClusterState, config: SimulationConfig, node: int, stage: int) -> None:
    """The spans of the stretch that ends now: one for each request of a batch."""
    work, now = cluster.stages[node * config.stages + stage], cluster.run[0].now
    size = cluster.batches[work.item].size if work.kind == SERVE else 1
    for position in range(size):
        task, batch = cluster.requests.size + work.item, NONE
        if work.kind == SERVE:
            task, batch = cluster.members[work.item, position], cluster.batches[work.item].number
        add_span(cluster, node, stage, task, work.kind, work.start, now, work.version, batch)
