"""The whole distributed run: every rank calls `run`, and it returns on all of them when the work is done."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from lemix_hpc.checkpoints.resumption import NodeStart
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.build import (
    Device,
    build_engine,
    check_sharing,
    choose_device,
    connect,
    connect_nodes,
    settle_device_buffers,
)
from lemix_hpc.records.attempts import Attempt
from lemix_hpc.run_setup.in_flight import planned_in_flight
from lemix_hpc.run_setup.memory_limits import is_limited
from lemix_hpc.run_setup.scheduler_setup import is_paced, partners, split
from lemix_hpc.runtime.leader.make_leader import AnyLeader, make_leader
from lemix_hpc.runtime.meeting_place import meeting_place
from lemix_hpc.runtime.scheduler.resume import Beginning, take_over
from lemix_hpc.runtime.stage.links import StagePlace
from lemix_hpc.runtime.stage.worker import StageRules, StageWorker
from lemix_hpc.runtime.transport.clock_keeper import ClockKeeper
from lemix_hpc.runtime.transport.doorbell import hang_doorbell
from lemix_hpc.runtime.transport.heartbeat import heartbeats
from lemix_hpc.runtime.transport.idle_wait import Waiter, make_waiter
from lemix_hpc.runtime.transport.mailbox import Inbox, Mailbox
from lemix_hpc.runtime.transport.rank_layout import SCHEDULER_RANK, Layout
from lemix_hpc.runtime.transport.run_clock import synchronise

if TYPE_CHECKING:
    from mpi4py import MPI

    from lemix_hpc.engines.torch.collective_sums import CollectiveSums
    from lemix_hpc.engines.torch.hand_over import HandOver
    from lemix_hpc.records.attempts import AttemptEnd
    from lemix_hpc.runtime.scheduler.drain import Drain


def run(recipe: Recipe, attempt: Attempt, drain: Drain | None) -> AttemptEnd | None:
    """Serve and train as the recipe says, in this attempt. Called by all ranks of an MPI world of the right size.

    Collective calls are made here, before the run starts; from then on there are only messages. The scheduler rank looks
    after `drain`, and returns why the run has ended; raises EndedEarlyError if it is to end before it has begun.
    """
    from mpi4py import MPI

    layout = Layout(recipe.nodes.count, recipe.nodes.stages)
    comm = MPI.COMM_WORLD.Dup()
    rank = comm.Get_rank()
    print(f"attempt {attempt.number}, rank {rank}: {layout.role(rank)} on {platform.node()}", flush=True)
    clock = synchronise(comm)
    host = comm.Split_type(MPI.COMM_TYPE_SHARED)
    bell = hang_doorbell(comm, host)
    keeper = None if rank == SCHEDULER_RANK else ClockKeeper(rank, clock, Mailbox(comm, Inbox.CLOCK, bell))
    stage, node = layout.stage_of(rank), layout.node_of(rank)
    # The threads of the engine's and our own web server cannot run while the leader's loop spins.
    threads = stage is None and recipe.engine.has_scheduler
    waiter = make_waiter(host, bell, "backoff" if threads else recipe.engine.wait)
    stages_before = sum(host.allgather(stage is not None)[: host.Get_rank()])
    device = choose_device(recipe, stages_before) if stage is not None else None
    devices = comm.gather("" if device is None else device.model, SCHEDULER_RANK)
    # A checkpoint is read in full here, while stages load what they compute with.
    taken_over = take_over(recipe, attempt) if rank == SCHEDULER_RANK else None
    check_sharing(recipe, host.allgather(device))
    recipe, hand_over, sums = _connect_stages(recipe, device, node, stage, comm.Split(stage is not None))
    beginning: Beginning = comm.bcast(taken_over and taken_over[0], SCHEDULER_RANK)
    resumption = beginning.resumption
    start = beginning.starts.get(node, NodeStart())
    with meeting_place(comm, node, is_leader=stage is None) as meeting:
        if stage is not None and device is not None:
            engine = build_engine(recipe, node=node, stage=stage, device=device, meeting=meeting)
            connect(engine, hand_over, sums)
            if resumption is not None:
                engine.restore(resumption.state(node))
            bell.watch(engine.watched)
            mailbox = Mailbox(comm, Inbox.STAGE, bell, engine.buffer)
            place, across = stage_place(recipe, layout, node, stage), partners(recipe)
            across = across if across is not None and node in across.nodes else None
            limited = is_limited(recipe) or (engine.takes is not None and engine.takes.capacity is not None)
            rules = stage_rules(recipe, limited=limited)
            worker = StageWorker(place, engine, mailbox, clock, waiter, rules, across, start)
            with heartbeats(waiter, mailbox, keeper, recipe.engine.timeout_s, attempt.must_count):
                worker.run()
            engine.close()
            return None
        mailbox = Mailbox(comm, Inbox.LEADER, bell)
        leader = make_leader(recipe, layout, node, mailbox, meeting, clock, bell.wake, start.version)
        with heartbeats(waiter, mailbox, keeper, recipe.engine.timeout_s, attempt.must_count):
            if taken_over is None:
                _lead(leader, waiter)
                return None
            # It loads the policy's compiler, which other ranks do without.
            from lemix_hpc.runtime.scheduler.rank import SchedulerRank
            from lemix_hpc.runtime.scheduler.warm_up import kinds_of

            assert drain is not None and devices is not None, "the scheduler rank has them"
            mailbox = Mailbox(comm, Inbox.SCHEDULER, bell)
            kinds = kinds_of(layout.by_node(devices))
            scheduler = SchedulerRank(
                recipe, layout, attempt, taken_over[1], mailbox, clock, waiter, leader, drain, kinds
            )
            return scheduler.run()


def _connect_stages(
    recipe: Recipe, device: Device | None, node: int, stage: int | None, stages: MPI.Comm
) -> tuple[Recipe, HandOver | None, CollectiveSums | None]:
    """What goes between stages without messages, and the recipe with what was found. Collective over `stages`."""
    recipe, hand_over = settle_device_buffers(recipe, device, node, stages)
    across = partners(recipe)
    if across is None or not across.collective or device is None or stage is None:
        return recipe, hand_over, None
    return recipe, hand_over, connect_nodes(device, stage if node in across.nodes else -1, stages)


def _lead(leader: AnyLeader, waiter: Waiter) -> None:
    """Until the leader has no more to do."""
    while not leader.finished:
        if leader.turn():
            waiter.reset()
        else:
            waiter.idle(leader.until_due(), in_transit=leader.in_transit)


def stage_place(recipe: Recipe, layout: Layout, node: int, stage: int) -> StagePlace:
    parts = split(recipe)
    copies = parts.served_by(node) if parts is not None and node in parts.training else ()
    return StagePlace(layout, node, stage, copies, recipe.policy.copy_every_steps)


def stage_rules(recipe: Recipe, *, limited: bool) -> StageRules:
    """`limited`: whether the stage's memory has an end."""
    policy, training = recipe.policy, recipe.training
    sync = training is not None and training.release == "sync"
    return StageRules(
        sync=sync,
        gpipe=sync and training is not None and training.schedule == "gpipe",
        serving_first=policy.serving_first,
        yield_training=policy.yield_training,
        minimum_training_share=policy.minimum_training_share,
        paced=is_paced(recipe),
        limited=limited,
        in_flight=planned_in_flight(recipe),
    )
