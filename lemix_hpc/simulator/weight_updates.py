"""The twin of `lemix_hpc.runtime.stage.weight_updates`: updates are begun, reported ready up the pipeline, and committed down.

Preparing and publishing take no time. An update goes by the weight version that it makes.
"""

from __future__ import annotations

import math

from lemix_hpc.policy.execution_rules import COMMIT
from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.simulator.cluster_state import ClusterState, SimulationConfig, add_span, take, touch
from lemix_hpc.simulator.dtypes import COPY, NONE, STEPS


@inlined
def report(cluster: ClusterState, config: SimulationConfig, node: int, stage: int) -> bool:
    """Report an update that is ready here and behind, which takes no work: to the stage before, or on the first one to
    itself. Whether the stage before has heard of it."""
    at = node * config.stages + stage
    state, ready = cluster.stages[at], ready_here(cluster, config, node, stage)
    if ready <= state.told:
        return False
    state.told, state.told_since = ready, cluster.run[0].now
    if stage > 0:
        cluster.stages[at - 1].behind = ready
    return stage > 0


@inlined
def ready_here(cluster: ClusterState, config: SimulationConfig, node: int, stage: int) -> int:
    """The newest update that is ready on a stage and on all behind."""
    state = cluster.stages[node * config.stages + stage]
    # A step is prepared when the one before is in force, a copy when it is there.
    ready: int = state.opened if node < config.servers else min(state.opened, state.version + 1)
    return ready if stage == config.stages - 1 else min(ready, state.behind)


@inlined
def commit_since(cluster: ClusterState, at: int, stage: int) -> float:
    """Since when an update is there to be published. The first stage decides on them; elsewhere the batches in front of the
    marker come first."""
    state = cluster.stages[at]
    if stage == 0:
        return state.told_since if state.told > state.version else math.inf
    if state.came == state.went or (state.serves != NONE and cluster.batches[state.serves].after_updates == state.went):
        return math.inf
    since: float = cluster.markers[at, state.went % cluster.markers.shape[1]].since
    return since


@compiled
def publish(cluster: ClusterState, config: SimulationConfig, node: int, stage: int) -> None:
    """Put an update in force, which takes no time, and tell the next stage in order with the activations."""
    at, now = node * config.stages + stage, cluster.run[0].now
    state, copied = cluster.stages[at], node < config.servers
    add_span(cluster, node, stage, NONE, COPY if copied else COMMIT, now, now, state.version, NONE)
    if stage == 0:
        state.version = state.told
    else:
        state.version = cluster.markers[at, state.went % cluster.markers.shape[1]].version
        state.went += 1
    if stage < config.stages - 1:
        _mark(cluster, at + 1, state.version)
    if not copied:
        if stage == 0:
            _stepped(cluster, config, node)
        if config.servers > 0 and state.version % config.copy_every == 0:
            _copy(cluster, config, node, stage)


@compiled
def _mark(cluster: ClusterState, at: int, version: int) -> None:
    """A commit marker comes to a stage."""
    state, room = cluster.stages[at], cluster.markers.shape[1]
    if state.came - state.went == room:
        raise IndexError("no room for a weight update")
    marker = cluster.markers[at, state.came % room]
    marker.version, marker.since = version, cluster.run[0].now
    state.came += 1


@compiled
def _stepped(cluster: ClusterState, config: SimulationConfig, node: int) -> None:
    """The step of a node's oldest group is in force on the first stage; the next one begins."""
    at, run = node * config.stages, cluster.run[0]
    group = take(cluster.queues[3 * at + STEPS], cluster.groups)
    cluster.groups[group].step = cluster.stages[at].version
    run.steps += 1
    run.begun -= 1
    begin_step(cluster, config, node)


@compiled
def begin_step(cluster: ClusterState, config: SimulationConfig, node: int) -> None:
    """Let all stages prepare the next step, if there is one and none is open."""
    at = node * config.stages
    first = cluster.stages[at]
    if first.opened > first.version or cluster.queues[3 * at + STEPS].head == NONE:
        return
    for stage in range(config.stages):
        cluster.stages[at + stage].opened = first.version + 1


@compiled
def _copy(cluster: ClusterState, config: SimulationConfig, trainer: int, stage: int) -> None:
    """Serving nodes get the weights of a training node's stage: trainers take turns, as in `lemix_hpc.policy.rules.Split`."""
    trainers = config.nodes - config.servers
    for node in range(config.servers):
        if config.servers + node % trainers == trainer:
            cluster.stages[node * config.stages + stage].opened = cluster.stages[
                trainer * config.stages + stage
            ].version
            touch(cluster, node)
