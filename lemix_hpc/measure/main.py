"""The whole profiling job: every rank calls `profile`, and it returns on all of them when everything is measured."""

from __future__ import annotations

import platform
from pathlib import Path

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.build import (
    build_measured,
    build_meter,
    check_sharing,
    choose_device,
    connect,
    settle_device_buffers,
)
from lemix_hpc.engines.protocol import TakesCacheWhole
from lemix_hpc.measure.passes import StagePasses
from lemix_hpc.measure.profiler import Profiler
from lemix_hpc.measure.result import write_result
from lemix_hpc.measure.subject import Subject, hardware_name, provenance, subject_of
from lemix_hpc.measure.worker import ProfiledStage
from lemix_hpc.profiling.grid import GridPoint, design
from lemix_hpc.records.files import replace
from lemix_hpc.runtime.meeting_place import meeting_place
from lemix_hpc.runtime.transport.doorbell import hang_doorbell
from lemix_hpc.runtime.transport.idle_wait import make_waiter
from lemix_hpc.runtime.transport.mailbox import Inbox, Mailbox
from lemix_hpc.runtime.transport.rank_layout import SCHEDULER_RANK, Layout

HARDWARE = "hardware.txt"


class ProfileOrder(msgspec.Struct, frozen=True):
    """What makes a run a profiling job (`profile.json`): where the results go, and the command that asked for them."""

    out: str
    command: list[str]


def profile(recipe: Recipe, run_dir: Path, order: ProfileOrder) -> None:
    """Measure into `run_dir` what is not there yet, and fit it. Called by all ranks of an MPI world of one node's size."""
    from mpi4py import MPI

    layout = Layout(1, recipe.nodes.stages)
    comm = MPI.COMM_WORLD.Dup()
    rank = comm.Get_rank()
    print(f"rank {rank}: {layout.role(rank)} on {platform.node()}, profiling", flush=True)
    host = comm.Split_type(MPI.COMM_TYPE_SHARED)
    bell = hang_doorbell(comm, host)
    waiter = make_waiter(host, bell, recipe.engine.wait)
    quiet = make_waiter(host, bell, "backoff")
    stage = layout.stage_of(rank)
    stages_before = sum(host.allgather(stage is not None)[: host.Get_rank()])
    device = choose_device(recipe, stages_before) if stage is not None else None
    check_sharing(recipe, host.allgather(device))
    recipe, hand_over = settle_device_buffers(recipe, device, 0, comm.Split(stage is not None))
    hardware = [name for name in comm.allgather(device and hardware_name(recipe, device)) if name]
    hosts = comm.allgather(platform.node())
    subject = subject_of(recipe, on_gpu=any(comm.allgather(device is not None and device.gpu is not None)))
    with meeting_place(comm, 0, is_leader=stage is None) as meeting:
        if stage is None:
            assert rank == SCHEDULER_RANK, "one node has one leader"
            _check_hardware(run_dir / HARDWARE, hardware)
            grid = _grid(recipe, subject)
            Profiler(recipe.profile, grid, layout, run_dir, Mailbox(comm, Inbox.SCHEDULER, bell), quiet).run()
            write_result(
                subject, hardware[0], layout.stages, run_dir, Path(order.out), provenance(order.command, hosts)
            )
            return
        assert device is not None, "stages have one"
        engine = build_measured(_unchanging(recipe), stage=stage, device=device, meeting=meeting)
        if hand_over is not None:
            hand_over.unread = True  # what a measured pass gives stays here
        connect(engine, hand_over)
        meter = build_meter(device)
        ProfiledStage(
            layout,
            stage,
            StagePasses(
                engine,
                meter,
                first=stage == 0,
                last=stage == layout.stages - 1,
                vocabulary=subject.vocabulary,
                generate=recipe.serving is not None and recipe.serving.mode == "generate",
                warm_up=recipe.profile.warm_up,
                repeats=recipe.profile.repeats,
                pause_s=recipe.profile.pause_s,
            ),
            meter,
            Mailbox(comm, Inbox.STAGE, bell, engine.buffer),
            engine.buffer,
            cache_bytes=engine.cache_bytes_per_token if isinstance(engine, TakesCacheWhole) else None,
            quiet=quiet,
            waiter=waiter,
        ).run()
        engine.close()


def _grid(recipe: Recipe, subject: Subject) -> list[GridPoint]:
    """An engine that forms its own batches answers each prompt with a token at least, which has a position, too."""
    answer = 1 if recipe.engine.has_scheduler else 0
    return design(
        recipe.profile,
        longest=None if subject.longest is None else subject.longest - answer,
        max_tokens=recipe.engine.max_batch_tokens,
        training=recipe.training is not None,
    )


def _unchanging(recipe: Recipe) -> Recipe:
    """The recipe with a learning rate that leaves the weights as they are: a step costs the same, and nothing diverges. Nothing
    is computed again in backwards: who reads the file adds the forward."""
    if recipe.training is None:
        return recipe
    flat = {"learning_rate_schedule": "constant", "decay_steps": None, "warmup_steps": 0}
    training = recipe.training.model_copy(
        update={"learning_rate": 1e-12, "weight_decay": 0.0, "recompute": "none"} | flat
    )
    return recipe.model_copy(update={"training": training})


def _check_hardware(note: Path, hardware: list[str]) -> None:
    """Points of different hardware must not be mixed, neither by stages nor by an attempt before this one."""
    if len(set(hardware)) > 1:
        raise UserError(
            f"the stages are on different hardware ({', '.join(sorted(set(hardware)))}); ask for one kind of it, such as by "
            "cluster.constraint"
        )
    if not note.exists():
        replace(note, hardware[0].encode())
    elif note.read_text(encoding="utf-8") != hardware[0]:
        raise UserError(
            f"{note.parent} has points of {note.read_text(encoding='utf-8')}, and this is {hardware[0]}; ask for the first, "
            "or choose another directory with --out"
        )
