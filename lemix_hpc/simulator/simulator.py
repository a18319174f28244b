"""One simulated run: a scheduler, a cluster, and what is to be served and trained."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from lemix_hpc.policy.events import BatchMeasured, PassKind, PassMeasured
from lemix_hpc.policy.execution_rules import BACKWARD, FORWARD, SERVE
from lemix_hpc.policy.latency import Shape
from lemix_hpc.policy.latency_tables import Times
from lemix_hpc.policy.scheduler import Scheduler
from lemix_hpc.policy.task_slots import full, grown
from lemix_hpc.simulator.cluster_state import ClusterState, SimulationConfig, make_cluster, with_groups
from lemix_hpc.simulator.dtypes import Records
from lemix_hpc.simulator.event_loop import advance
from lemix_hpc.simulator.scheduler_rank import DONE, MEASURE, NEED_GROUPS, NEED_SLOTS, NEED_SPACE
from lemix_hpc.simulator.tournament_tree import earliest

PASS_KINDS: dict[int, PassKind] = {SERVE: "serve", BACKWARD: "backward", FORWARD: "forward"}

GROUPS = 1024
"""How many groups of endless training are made at a time."""


class SimulationResult(NamedTuple):
    """The cluster at its end, and what the policy was told of times of passes, each behind so many events of the cluster."""

    cluster: ClusterState
    measured: list[tuple[int, PassMeasured | BatchMeasured]]


def run_simulation(
    scheduler: Scheduler,
    config: SimulationConfig,
    times: Times,
    requests: Records,
    groups: Iterator[list[int]] | None = None,
    stage_memory: Records | None = None,
    believed: Times | None = None,
) -> SimulationResult:
    """Run everything to its end.

    `times` are the cluster's, whatever forecasts go by. `groups`: for each optimizer step, the tokens in a row of its
    micro-batches; without an end where the config says so. `stage_memory`: of all stages, where the config limits it;
    `believed`: what leaders take `times` for, if they are wrong.
    """
    cluster = make_cluster(
        config,
        times,
        requests,
        spans=4096 + 2 * config.stages * len(requests),
        stage_memory=stage_memory,
        believed=believed,
    )
    if groups is not None:
        cluster = with_groups(cluster, list(islice(groups, GROUPS) if config.endless else groups))
    measured: list[tuple[int, PassMeasured | BatchMeasured]] = []
    while True:
        asked = advance(cluster, config, scheduler.state, scheduler.rules)
        if asked == DONE:
            return SimulationResult(cluster, measured)
        if asked == NEED_SPACE:
            cluster = cluster._replace(spans=_doubled(cluster.spans), events=_doubled(cluster.events))
        elif asked == NEED_SLOTS:
            _make_room(scheduler, cluster)
        elif asked == MEASURE:
            event = _pass_that_ends(config, cluster)
            measured.append((int(cluster.run["events"][0]), event))
            scheduler.handle(event)
        elif asked == NEED_GROUPS and groups is not None:
            cluster = with_groups(cluster, list(islice(groups, GROUPS)))
        else:
            raise RuntimeError(f"nothing can happen any more after {cluster.run['now'][0]:.6g} s, and work is left")


def _make_room(scheduler: Scheduler, cluster: ClusterState) -> None:
    """Room in the policy's state for any one arrival or group that may come next."""
    more = max(1, int(cluster.groups["size"].max(initial=0)))
    while full(scheduler.state, more):
        scheduler.state = grown(scheduler.state)


def _doubled(records: Records) -> Records:
    return np.concatenate([records, np.zeros_like(records)])


def _pass_that_ends(config: SimulationConfig, cluster: ClusterState) -> PassMeasured | BatchMeasured:
    """How long the pass took that ends next."""
    node, stage = divmod(earliest(cluster.timers), config.stages)
    work, now = cluster.stages[node * config.stages + stage], float(cluster.run["now"][0])
    kind, item = int(work["kind"]), int(work["item"])
    if kind == SERVE:
        batch = cluster.batches[item]
        shape = Shape(int(batch["tokens"]), int(batch["squares"]), float(batch["cached"]), int(batch["prefills"]))
        return BatchMeasured(now, node, shape, (*cluster.took[item, :-1].tolist(), float(work["piece"])))
    shape = Shape.of([int(cluster.lengths[item])] * config.rows)
    again = 2 if kind == BACKWARD and stage < config.recomputing else 1
    seconds = float(work["piece"]) * again * config.pieces
    return PassMeasured(now, node, stage, PASS_KINDS[kind], shape, seconds)
