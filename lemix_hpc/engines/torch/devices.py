"""Which device a stage rank computes on, and the cores near it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Engine

PCI_DEVICES = Path("/sys/bus/pci/devices")


def choose_device(engine: Engine, local_stage: int) -> str:
    """`cpu`, or `cuda:K`: the visible GPUs of a host are dealt out to its stage ranks in order.

    A rank to which Slurm shows one GPU of its own takes that one. Raises UserError if a GPU is asked for and none is there.
    """
    if engine.device != "cpu":
        _see_one_instance(local_stage)
    count = torch.cuda.device_count() if engine.device != "cpu" else 0
    if count:
        return f"cuda:{local_stage % count}"
    if engine.device == "cuda":
        raise UserError(
            "engine.device: cuda, but no GPU is visible to this rank; set it to auto or cpu, or ask for GPUs "
            "(cluster.gpus_per_node)"
        )
    return "cpu"


def _see_one_instance(local_stage: int) -> None:
    """Of several instances of a GPU (MIG) CUDA shows a process the first one alone, so each stage rank is left with its own."""
    instances = _visible()
    if len(instances) > 1 and all(name.startswith("MIG-") for name in instances):
        os.environ["CUDA_VISIBLE_DEVICES"] = instances[local_stage % len(instances)]


def _visible() -> list[str]:
    return [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]


def take(device: torch.device) -> None:
    """Compute on this device from here on; on a GPU on the cores near it, and in a stream that goes before all others, such as
    training's."""
    if device.type != "cuda":
        return
    torch.cuda.set_device(device)
    _stay_near(device)
    current = torch.cuda.current_stream(device)
    if current == torch.cuda.default_stream(device):
        _, first = current.priority_range()
        stream = torch.cuda.Stream(device, priority=first)  # type: ignore[no-untyped-call]
        stream.wait_stream(current)
        torch.cuda.set_stream(stream)


def like_here(device: torch.device) -> Callable[[], None]:
    """What another thread has to call to compute on this device, in the current stream of this thread."""
    if device.type != "cuda":
        return lambda: None
    stream = torch.cuda.current_stream(device)

    def enter() -> None:
        torch.cuda.set_device(device)
        torch.cuda.set_stream(stream)

    return enter


def cores_near(device: torch.device) -> set[int]:
    """Those on the NUMA node of a GPU; none where Linux does not tell."""
    listed = PCI_DEVICES / _address(device) / "local_cpulist"
    return cores_in(listed.read_text(encoding="ascii")) if listed.exists() else set()


def _stay_near(device: torch.device) -> None:
    """Leave out those of this rank's cores that are on another NUMA node than its GPU: pinned memory would be there, too."""
    near, allowed = cores_near(device), os.sched_getaffinity(0)
    if near & allowed:
        os.sched_setaffinity(0, near & allowed)
    elif near:
        print(
            f"warning: none of this rank's cores ({_short(allowed)}) is near its GPU {_address(device)} ({_short(near)}); let "
            "Slurm choose them by cluster.sbatch: {gres-flags: enforce-binding}",
            flush=True,
        )


def _address(device: torch.device) -> str:
    found: Any = torch.cuda.get_device_properties(device)
    return f"{found.pci_domain_id:04x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"


def cores_in(listed: str) -> set[int]:
    """Of a list of Linux, such as `0-3,8`."""
    ends = [part.partition("-") for part in listed.strip().split(",") if part]
    return {core for first, _, last in ends for core in range(int(first), int(last or first) + 1)}


def _short(cores: set[int]) -> str:
    return f"{len(cores)} from {min(cores)} to {max(cores)}"


def device_bytes(engine: Engine, device: torch.device) -> int | None:
    """The memory of a GPU that a stage has for itself; None of others, whose part only the recipe can say."""
    if device.type != "cuda" or engine.share_devices:
        return None
    return torch.cuda.mem_get_info(device)[1]


def gpu_id(device: str) -> str | None:
    """What tells this GPU, or this instance of one, from all others of the host, whatever number it has for this rank; None for
    a CPU."""
    if device == "cpu":
        return None
    instances = [name for name in _visible() if name.startswith("MIG-")]
    return instances[0] if instances else str(torch.cuda.get_device_properties(device).uuid)


def gpu_model(device: str) -> str:
    """The product name of a GPU; nothing for a CPU: those of a run are taken to be alike."""
    return torch.cuda.get_device_name(device) if device != "cpu" else ""
