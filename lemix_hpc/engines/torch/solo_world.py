"""The world that DeepSpeed sees: this process alone, whatever other stages there are."""

from __future__ import annotations

import os

import torch
import torch.distributed


def name_device(device: torch.device) -> None:
    """DeepSpeed takes LOCAL_RANK for the device and refuses one that differs from Open MPI's, which counts leaders too."""
    os.environ.pop("OMPI_COMM_WORLD_LOCAL_RANK", None)
    os.environ["LOCAL_RANK"] = str(device.index or 0)


def own_world() -> None:
    """A process group of this process alone, without a rendezvous: stages talk over MPI only."""
    os.environ.update(RANK="0", WORLD_SIZE="1")
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)


def group_of_this_rank() -> torch.distributed.ProcessGroup:
    """A group of this rank alone, where torch.distributed has more. All ranks must call this, as often as each other."""
    rank = torch.distributed.get_rank()
    groups: list[torch.distributed.ProcessGroup] = [
        torch.distributed.new_group([each]) for each in range(torch.distributed.get_world_size())
    ]
    return groups[rank]


class SoloWorld:
    """DeepSpeed's `mpu` where torch.distributed has several ranks: of every kind of group, one with this rank alone."""

    def __init__(self, group: torch.distributed.ProcessGroup) -> None:
        self._group = group

    def get_data_parallel_group(self) -> torch.distributed.ProcessGroup:
        return self._group

    def get_data_parallel_group_ranks(self) -> list[int]:
        return [torch.distributed.get_rank()]

    def get_data_parallel_rank(self) -> int:
        return 0

    def get_data_parallel_world_size(self) -> int:
        return 1

    def get_model_parallel_group(self) -> torch.distributed.ProcessGroup:
        return self._group

    def get_model_parallel_rank(self) -> int:
        return 0

    def get_model_parallel_world_size(self) -> int:
        return 1
