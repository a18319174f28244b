"""One simulated run: a scheduler, a cluster, and what is to be served and trained."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from lemix_hpc.policy.scheduler import Scheduler
from lemix_hpc.policy.state import full, grown
from lemix_hpc.policy.times import Times
from lemix_hpc.simulate.front import DONE, NEED_GROUPS, NEED_SLOTS, NEED_SPANS
from lemix_hpc.simulate.loop import advance
from lemix_hpc.simulate.world import Records, Setting, World, make_world, with_groups

GROUPS = 1024
"""How many groups of endless training are made at a time."""


def play(
    scheduler: Scheduler, setting: Setting, times: Times, requests: Records, groups: Iterator[list[int]] | None = None
) -> World:
    """Run everything to its end, and return the world as it is then.

    `times` are the cluster's, whatever forecasts go by. `groups`: for each optimizer step, the tokens in a row of its
    micro-batches; without an end where the setting says so.
    """
    world = make_world(setting, times, requests, spans=4096 + 2 * setting.stages * len(requests))
    if groups is not None:
        world = with_groups(world, list(islice(groups, GROUPS) if setting.endless else groups))
    while True:
        asked = advance(world, setting, scheduler.state, scheduler.rules)
        if asked == DONE:
            return world
        if asked == NEED_SPANS:
            world = world._replace(spans=np.concatenate([world.spans, np.zeros_like(world.spans)]))
        elif asked == NEED_SLOTS:
            _make_room(scheduler, world)
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
