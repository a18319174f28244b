"""Which device a stage rank computes on."""

from __future__ import annotations

import torch

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Engine


def choose_device(engine: Engine, local_stage: int) -> str:
    """`cpu`, or `cuda:K`: the visible GPUs of a host are dealt out to its stage ranks in order.

    A rank to which Slurm shows one GPU of its own takes that one. Raises UserError if a GPU is asked for and none is there.
    """
    count = torch.cuda.device_count() if engine.device != "cpu" else 0
    if count:
        return f"cuda:{local_stage % count}"
    if engine.device == "cuda":
        raise UserError(
            "engine.device: cuda, but no GPU is visible to this rank; set it to auto or cpu, or ask for GPUs "
            "(cluster.gpus_per_node)"
        )
    return "cpu"


def take(device: torch.device) -> None:
    """Compute on this device from here on; on a GPU in a stream that goes before all others, such as training's."""
    if device.type != "cuda":
        return
    torch.cuda.set_device(device)
    current = torch.cuda.current_stream(device)
    if current == torch.cuda.default_stream(device):
        _, first = current.priority_range()
        stream = torch.cuda.Stream(device, priority=first)  # type: ignore[no-untyped-call]
        stream.wait_stream(current)
        torch.cuda.set_stream(stream)


def device_bytes(engine: Engine, device: torch.device) -> int | None:
    """The memory of a GPU that a stage has for itself; None of others, whose part only the recipe can say."""
    if device.type != "cuda" or engine.share_devices:
        return None
    return torch.cuda.mem_get_info(device)[1]


def gpu_id(device: str) -> str | None:
    """What tells this GPU from all others of the host, whatever number it has for this rank; None for a CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device != "cpu" else None
