"""The twin of `lemix_hpc.runtime.scheduler.loop`: tells the policy what happens, and carries out what that decides."""

from __future__ import annotations

from lemix_hpc.policy import execution_rules, transitions
from lemix_hpc.policy.event_records import ARRIVED, CLOSED, ENDED, OFFERED, PASSED_ALL, PASSED_STAGE, TICKED
from lemix_hpc.policy.execution_rules import CLOSE, OFFER, WAIT
from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.policy.rules import Rules
from lemix_hpc.policy.state import State
from lemix_hpc.policy.task_slots import full as is_full
from lemix_hpc.policy.transitions import answer_passed, group_offered, tell
from lemix_hpc.simulator.cluster_state import ClusterState, SimulationConfig, append, next_event, touch
from lemix_hpc.simulator.dtypes import FINISHED, FORWARDS, NONE, REFUSED
from lemix_hpc.simulator.pairing_heap import bring_follower
from lemix_hpc.simulator.request_queues import wait

next_supply = compiled(execution_rules.supply_training)
next_tick, full = compiled(transitions.next_tick), compiled(is_full)

GOING, DONE, STUCK, NEED_SPACE, NEED_SLOTS, NEED_GROUPS, MEASURE = range(7)
"""What the loop asks of its caller: nothing, to make room for spans and events or in the policy's state, for more groups of
micro-batches, or to tell the policy how long the pass took that ends next."""


@compiled
def arrive(cluster: ClusterState, config: SimulationConfig, state: State, rules: Rules, task: int) -> None:
    """Let a request in."""
    request = cluster.requests[task]
    event = cluster.events[next_event(cluster, config, ARRIVED)]
    event.task, event.prompt, event.output = task, request.prompt, request.output
    event.patient = request.patient
    tell(state, rules, event)
    _carry_out(cluster, config, state)


@compiled
def supply_training(cluster: ClusterState, config: SimulationConfig, state: State, rules: Rules) -> int:
    """Offer groups ahead of the policy's need, one for every node, until it is enough. What is asked of the caller."""
    run = cluster.run[0]
    while not run.closed:
        over = run.refused or (config.endless and run.unserved == 0)
        exhausted = not config.endless and run.next_group == cluster.groups.size
        asked = next_supply(over, exhausted, run.offered, config.nodes)
        if asked != OFFER:
            run.closed = asked != WAIT
            if asked == CLOSE:
                tell(state, rules, cluster.events[next_event(cluster, config, CLOSED)])
            break
        if run.next_group == cluster.groups.size:
            return NEED_GROUPS
        first, size = cluster.groups[run.next_group].first, cluster.groups[run.next_group].size
        task = cluster.requests.size + first
        if full(state, size):
            return NEED_SLOTS
        cluster.events[next_event(cluster, config, OFFERED)].task = run.next_group
        run.next_group += 1
        run.offered += 1
        group_offered(state, rules, run.now, task, cluster.lengths[first : first + size], config.rows, NONE)
        _carry_out(cluster, config, state)
    return GOING


@inlined
def tell_finished(
    cluster: ClusterState, config: SimulationConfig, state: State, rules: Rules, node: int, task: int
) -> None:
    """A task has its outcome."""
    now, output = cluster.run[0].now, 0
    if task < cluster.requests.size:
        cluster.run[0].unserved -= 1
        output = cluster.requests[task].produced
    else:
        micro_batch = cluster.micro_batches[task - cluster.requests.size]
        micro_batch.outcome, micro_batch.finished = FINISHED, now
    event = cluster.events[next_event(cluster, config, ENDED)]
    event.node, event.task, event.output = node, task, output
    tell(state, rules, event)
    _carry_out(cluster, config, state)


@inlined
def note_served(
    cluster: ClusterState, config: SimulationConfig, state: State, rules: Rules, node: int, stage: int, task: int
) -> None:
    """A stage has run a request's pass. The twin of `lemix_hpc.runtime.leader.node_reports`: the policy hears of the last one,
    and where several tokens are generated, of that on all stages once all have run it."""
    now, request, passed = cluster.run[0].now, cluster.requests[task], cluster.passed[task, stage]
    if passed.passes == 0:
        passed.start = cluster.stages[node * config.stages + stage].start
    passed.passes += 1
    passed.partial += request.part < request.length
    passed.end = now
    if request.part < request.length or passed.passes - passed.partial < request.output:
        return
    if request.output <= 1:
        tell_passed(cluster, config, state, rules, node, stage, task, passed.start, now, False)
    elif stage == config.stages - 1:
        event = cluster.events[next_event(cluster, config, PASSED_ALL)]
        event.node, event.task = node, task
        answer_passed(state, rules, now, node, task, cluster.passed[task])
        _carry_out(cluster, config, state)


@inlined
def tell_passed(
    cluster: ClusterState,
    config: SimulationConfig,
    state: State,
    rules: Rules,
    node: int,
    stage: int,
    task: int,
    start: float,
    end: float,
    backward: bool,
) -> None:
    """A stage has run a task's pass."""
    event = cluster.events[next_event(cluster, config, PASSED_STAGE)]
    event.node, event.stage, event.task, event.backward = node, stage, task, backward
    event.start, event.end = start, end
    tell(state, rules, event)
    _carry_out(cluster, config, state)


@compiled
def look_again(cluster: ClusterState, config: SimulationConfig, state: State, rules: Rules) -> None:
    """The policy wants to look at held training again."""
    tell(state, rules, cluster.events[next_event(cluster, config, TICKED)])
    _carry_out(cluster, config, state)


@inlined
def _carry_out(cluster: ClusterState, config: SimulationConfig, state: State) -> None:
    """Send decided tasks to their nodes."""
    counters = state.counters[0]
    for position in range(counters.decided):
        task, slot = state.decided[position, 0], state.decided[position, 1]
        if task < cluster.requests.size:
            _place_request(cluster, state, task, slot)
        else:
            _place_micro_batch(cluster, config, state, task - cluster.requests.size, slot)
    counters.decided = 0


@inlined
def _place_request(cluster: ClusterState, state: State, task: int, slot: int) -> None:
    run, request = cluster.run[0], cluster.requests[task]
    if slot == NONE:
        request.outcome = REFUSED
        run.unserved -= 1
        if request.follower != NONE:
            bring_follower(cluster, request.follower, max(run.now, cluster.requests[request.follower].earliest))
        return
    node = state.slots[slot].node
    request.node, request.key, request.predicted = node, state.slots[slot].key, state.slots[slot].predicted
    request.predicted_first, request.predicted_token = state.slots[slot].first, state.slots[slot].each
    request.placed, request.length = run.now, request.prompt
    wait(cluster, node, task)
    touch(cluster, node)


@inlined
def _place_micro_batch(cluster: ClusterState, config: SimulationConfig, state: State, number: int, slot: int) -> None:
    run, micro_batch = cluster.run[0], cluster.micro_batches[number]
    group = cluster.groups[micro_batch.group]
    if slot == NONE:
        micro_batch.outcome, run.refused = REFUSED, True
        if number == group.first:
            run.offered -= 1
        return
    if not group.begun:
        group.begun = True
        run.offered -= 1
        run.begun += 1
    node = state.slots[slot].node
    micro_batch.node, micro_batch.eligible, micro_batch.placed = node, state.slots[slot].eligible, run.now
    micro_batch.since = run.now
    append(cluster.queues[3 * node * config.stages + FORWARDS], cluster.micro_batches, number)
    touch(cluster, node)
