"""Build the engine that a recipe asks for, importing only what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.meter import HostMeter, Meter
from lemix_hpc.engines.protocol import StageEngine
from lemix_hpc.profiling.hardware import load_hardware


@dataclass(frozen=True, slots=True)
class Device:
    """What a stage computes on: torch's name for it, and what tells a GPU from all others of the host."""

    name: str
    gpu: str | None = None


def choose_device(recipe: Recipe, local_stage: int) -> Device:
    """The device of the stage rank that is number `local_stage` among those of its host."""
    if recipe.engine.kind == "emulated":
        return Device("emulated")
    from lemix_hpc.engines.torch import devices

    name = devices.choose_device(recipe.engine, local_stage)
    return Device(name, devices.gpu_id(name))


def check_sharing(recipe: Recipe, devices: Sequence[Device | None]) -> None:
    """Refuse several stage ranks of a host on one GPU, unless the recipe says so. `devices`: of all ranks of the host."""
    gpus = [device.gpu for device in devices if device is not None and device.gpu is not None]
    if len(gpus) > len(set(gpus)) and not recipe.engine.share_devices:
        raise UserError(
            f"{len(gpus)} stage ranks on this host share {len(set(gpus))} GPUs; ask for one GPU per stage "
            "(cluster.gpus_per_node), or set engine.share_devices: true for a trial"
        )


def build_engine(recipe: Recipe, *, node: int, stage: int, device: Device, meeting: Path | None = None) -> StageEngine:
    """The engine of one stage. `meeting`: a directory that the ranks of its node share; vLLM needs one."""
    if recipe.engine.kind == "emulated":
        from lemix_hpc.engines.emulated import EmulatedStage

        hardware, stages = load_hardware(recipe), recipe.nodes.stages
        return EmulatedStage(hardware.latencies(stages)[hardware.kinds[node]], stage, hardware.pieces(stages))
    if recipe.engine.kind == "vllm":
        from lemix_hpc.engines.vllm.environment import prepare

        prepare()
        assert meeting is not None, "a node's ranks meet before its engines are built"
        from lemix_hpc.engines.vllm import build as vllm_build

        return vllm_build.build_stage(recipe, stage=stage, device=device.name, meeting=meeting)
    from lemix_hpc.engines.torch.build import build_stage

    return build_stage(recipe, stage=stage, device=device.name)


def build_meter(device: Device) -> Meter:
    """What measures work on a device."""
    if device.gpu is None:
        return HostMeter()
    from lemix_hpc.engines.torch.meter import CudaMeter

    return CudaMeter(device.name)
