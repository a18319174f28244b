"""Build the engine that a recipe asks for, importing only what it needs."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lemix_hpc.config.engine_kinds import ENGINE_KINDS
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.meter import HostMeter, Meter
from lemix_hpc.engines.protocol import HandsOn, StageEngine, SumsByItself

if TYPE_CHECKING:
    from mpi4py import MPI

    from lemix_hpc.engines.torch.collective_sums import CollectiveSums
    from lemix_hpc.engines.torch.hand_over import HandOver


@dataclass(frozen=True, slots=True)
class Device:
    """What a stage computes on: torch's name for it, what tells a GPU from all others of the host, and its `model`.

    A stage that computes nothing has the engine's name here.
    """

    name: str
    gpu: str | None = None
    model: str = ""


def choose_device(recipe: Recipe, local_stage: int) -> Device:
    """The device of the stage rank that is number `local_stage` among those of its host.

    Raises UserError if the recipe asks for a GPU and none is visible.
    """
    if not recipe.engine.computes:
        return Device(recipe.engine.kind)
    from lemix_hpc.engines.torch import devices

    name = devices.choose_device(recipe.engine, local_stage)
    return Device(name, devices.gpu_id(name), devices.gpu_model(name))


def check_sharing(recipe: Recipe, devices: Sequence[Device | None]) -> None:
    """Refuse several stage ranks of a host on one GPU, unless the recipe says so. `devices`: of all ranks of the host."""
    gpus = [device.gpu for device in devices if device is not None and device.gpu is not None]
    if len(gpus) > len(set(gpus)) and not recipe.engine.share_devices:
        raise UserError(
            f"{len(gpus)} stage ranks on this host share {len(set(gpus))} GPUs; ask for one GPU per stage "
            "(cluster.gpus_per_node), or set engine.share_devices: true for a trial"
        )


def settle_device_buffers(
    recipe: Recipe, device: Device | None, node: int, stages: MPI.Comm
) -> tuple[Recipe, HandOver | None]:
    """The recipe with `engine.device_buffers` as this stage's `node` will have it, where stages compute on GPUs: transfers show
    what works. The second is for `connect`, where it is by CUDA IPC.

    Collective over `stages`, the ranks of all stages of a run, or of all others, without a device. Raises UserError if the
    recipe wants CUDA IPC and it does not work.
    """
    given = recipe.engine.device_buffers
    if device is None or given in ("mpi", "off") or not all(stages.allgather(device.gpu is not None)):
        return recipe, None
    import torch

    from lemix_hpc.engines.torch import between_stages, devices

    place = torch.device(device.name)
    devices.take(place)  # MPI and CUDA ask which device is the current one
    settled = between_stages.settle(recipe, place, node, stages)
    engine = recipe.engine.model_copy(update={"device_buffers": settled.way})
    return recipe.model_copy(update={"engine": engine}), settled.hand_over


def connect_nodes(device: Device, stage: int, stages: MPI.Comm) -> CollectiveSums | None:
    """What sums gradients over nodes, for `connect`, with the same `stage` of others; -1 where a node trains with no other.

    Collective over `stages`, the ranks of all stages of a run. Raises UserError if nodes cannot be connected.
    """
    import torch

    from lemix_hpc.engines.torch import collective_sums, devices

    place = torch.device(device.name)
    devices.take(place)  # NCCL asks which device is the current one
    return collective_sums.connect(place, stage, stages)


def build_engine(recipe: Recipe, *, node: int, stage: int, device: Device, meeting: Path | None = None) -> StageEngine:
    """The engine of one stage: stage `stage` of node `node`, on `device`.

    Calls `build_stage` of the engine's package with the same arguments, but for the device's name alone. `meeting`: a
    directory that the ranks of the node share, for engines that have processes of their own. Raises UserError for a recipe
    that the engine cannot run.
    """
    package = importlib.import_module(ENGINE_KINDS[recipe.engine.kind].package)
    engine: StageEngine = package.build_stage(recipe, node=node, stage=stage, device=device.name, meeting=meeting)
    return engine


def connect(engine: StageEngine, hand_over: HandOver | None, sums: CollectiveSums | None = None) -> None:
    """Let an engine on a GPU hand tensors on by what `settle_device_buffers` has found, if it has, and sum gradients by what
    `connect_nodes` has connected, if it has."""
    if hand_over is not None:
        assert isinstance(engine, HandsOn), "only stages of torch are asked to"
        engine.connect(hand_over)
    if sums is not None:
        assert isinstance(engine, SumsByItself), "only stages of torch are asked to"
        engine.join(sums)


def build_measured(recipe: Recipe, *, stage: int, device: Device, meeting: Path) -> StageEngine:
    """The engine of a stage of a profiling job, whose ranks share the directory `meeting`. One that forms its own batches is
    built without what forms them, by `build_lone_stage` of its package, and runs those that it is given."""
    if not recipe.engine.has_scheduler:
        return build_engine(recipe, node=0, stage=stage, device=device, meeting=meeting)
    package = importlib.import_module(ENGINE_KINDS[recipe.engine.kind].package)
    engine: StageEngine = package.build_lone_stage(recipe, stage=stage, device=device.name, meeting=meeting)
    return engine


def build_meter(device: Device) -> Meter:
    """What measures work on a device."""
    if device.gpu is None:
        return HostMeter()
    from lemix_hpc.engines.torch.meter import CudaMeter

    return CudaMeter(device.name)
