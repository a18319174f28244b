"""One simulated run: a scheduler, a cluster, and what is to be served and trained."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from lemix_hpc.policy.events import PassKind, PassMeasured
from lemix_hpc.policy.execution_rules import BACKWARD, FORWARD, SERVE
from lemix_hpc.policy.latency import Shape
from lemix_hpc.policy.latency_tables import Times
from lemix_hpc.policy.scheduler import Scheduler
from lemix_hpc.policy.state import full, grown
from lemix_hpc.simulate.cluster_state import Setting, World, make_world, with_groups
from lemix_hpc.simulate.dtypes import Records
from lemix_hpc.simulate.event_loop import advance
from lemix_hpc.simulate.scheduler_rank import DONE, MEASURE, NEED_GROUPS, NEED_ROOM, NEED_SLOTS
from lemix_hpc.simulate.tournament_tree import earliest

PASS_KINDS: dict[int, PassKind] = {SERVE: "serve", BACKWARD: "backward", FORWARD: "forward"}

GROUPS = 1024
"""How many groups of endless training are made at a time."""


class Played(NamedTuple):
    """The world at its end, and what the policy was told of times of passes, each behind so many events of the world."""

    world: World
    measured: list[tuple[int, PassMeasured]]


def play(
    scheduler: Scheduler,
    setting: Setting,
    times: Times,
    requests: Records,
    groups: Iterator[list[int]] | None = None,
    rooms: Records | None = None,
) -> Played:
    """Run everything to its end.

    `times` are the cluster's, whatever forecasts go by. `groups`: for each optimizer step, the tokens in a row of its
    micro-batches; without an end where the setting says so. `rooms`: the memory of the stages, where the setting limits it.
    """
    world = make_world(setting, times, requests, spans=4096 + 2 * setting.stages * len(requests), rooms=rooms)
    if groups is not None:
        world = with_groups(world, list(islice(groups, GROUPS) if setting.endless else groups))
    measured: list[tuple[int, PassMeasured]] = []
    while True:
        asked = advance(world, setting, scheduler.state, scheduler.rules)
        if asked == DONE:
            return Played(world, measured)
        if asked == NEED_ROOM:
            world = world._replace(spans=_doubled(world.spans), events=_doubled(world.events))
        elif asked == NEED_SLOTS:
            _make_room(scheduler, world)
        elif asked == MEASURE:
            event = _pass_that_ends(setting, world)
            measured.append((int(world.run["events"][0]), event))
            scheduler.handle(event)
        elif asked == NEED_GROUPS and groups is not None:
            world = with_groups(world, list(islice(groups, GROUPS)))
        else:
            raise RuntimeError(f"nothing can happen any more after {world.run['now'][0]:.6g} s, and work is left")


def _make_room(scheduler: Scheduler, world: World) -> None:
    """Room in the policy's state for any one arrival or group that may come next."""
    more = max(1, int(world.groups["size"].max(initial=0)))
    tasks = len(world.requests) + len(world.micro_batches)
    while full(scheduler.state, tasks, more):
        scheduler.state = grown(scheduler.state, tasks)


def _doubled(records: Records) -> Records:
    return np.concatenate([records, np.zeros_like(records)])


def _pass_that_ends(setting: Setting, world: World) -> PassMeasured:
    """How long the pass took that ends next."""
    node, stage = divmod(earliest(world.timers), setting.stages)
    work, now = world.stages[node * setting.stages + stage], float(world.run["now"][0])
    kind, item = int(work["kind"]), int(work["item"])
    if kind == SERVE:
        batch = world.batches[item]
        shape = Shape(int(batch["tokens"]), int(batch["squares"]), float(batch["cached"]), int(batch["prefills"]))
        seconds = float(work["piece"])
    else:
        shape = Shape.of([int(world.lengths[item])] * setting.rows)
        seconds = float(work["piece"]) * setting.pieces
    return PassMeasured(now, node, stage, PASS_KINDS[kind], shape, seconds)
