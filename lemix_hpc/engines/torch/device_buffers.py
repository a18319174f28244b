"""Whether MPI sends a GPU's memory: what its library says, and one transfer that shows it.

How stages come to hand tensors on is in `between_stages`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lemix_hpc.config.recipe import Engine
from lemix_hpc.engines.torch.loaded_library import loaded_library

if TYPE_CHECKING:
    from mpi4py import MPI

TRIAL_BYTES = 1 << 20
"""Above what MPI libraries send in one message without asking, so that the way of long messages is tried."""


def sends_device_memory(engine: Engine, device: torch.device) -> bool:
    """Whether payloads of this device go to MPI as they are. What `auto` means is settled at the start of a run."""
    if device.type != "cuda" or engine.device_buffers not in ("auto", "mpi"):
        return False
    return engine.device_buffers == "mpi" or library_takes_device_memory()


def library_takes_device_memory() -> bool:
    """Whether this process's MPI library says that it takes pointers to CUDA memory, as Open MPI builds with CUDA do.

    Other MPI libraries have no common way to ask; tensors then go through pinned host memory, which always works.
    """
    library = loaded_library("libmpi.so")
    query = getattr(library, "MPIX_Query_cuda_support", None) if library is not None else None
    return query is not None and bool(query())


def why_not_by_device(stages: MPI.Comm, device: torch.device) -> str | None:
    """Send some of a device's memory round the ranks; why MPI is not to send it, None if all of it arrived on every rank.

    Collective over `stages`, all ranks with a device.
    """
    says = stages.allgather(library_takes_device_memory() if device.type == "cuda" else True)
    if not all(says):
        return "this MPI does not say that it can"
    faults = stages.allgather(_fault(stages, device))
    return next((f"stage rank {rank} of {len(faults)}: {fault}" for rank, fault in enumerate(faults) if fault), None)


def _fault(stages: MPI.Comm, device: torch.device) -> str | None:
    """What went wrong on this rank, which sends to the next one."""
    rank, count = stages.Get_rank(), stages.Get_size()
    before = (rank - 1) % count
    sent, received = _pattern(rank, device), torch.zeros(TRIAL_BYTES, dtype=torch.uint8, device=device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    try:
        arriving = stages.Irecv(received, before)
        stages.Isend(sent, (rank + 1) % count).Wait()
        arriving.Wait()
    except Exception as error:  # noqa: BLE001  of MPI, or of how it looks at the memory: then it is not for it to send
        return f"{type(error).__name__}: {error}"
    return None if torch.equal(received, _pattern(before, device)) else "what arrived is not what was sent"


def _pattern(rank: int, device: torch.device) -> torch.Tensor:
    return (torch.arange(TRIAL_BYTES, device=device) % 251 + rank).to(torch.uint8)
