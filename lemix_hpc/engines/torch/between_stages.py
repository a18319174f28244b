"""How the stages of a run hand tensors of GPUs on: by CUDA IPC, by MPI from GPU to GPU, or through pinned host memory.

All of it is tried and told at the start; from then on each node keeps to its way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.memory_plan import handed_on
from lemix_hpc.engines.torch.cuda_ipc import CudaRegion, CudaRuntime
from lemix_hpc.engines.torch.device_buffers import why_not_by_device
from lemix_hpc.engines.torch.hand_over import HandOver
from lemix_hpc.engines.torch.peer_trial import Region, connect

if TYPE_CHECKING:
    from mpi4py import MPI

Way = Literal["ipc", "mpi", "off"]
SAYS = {
    "ipc": "from GPU to GPU by CUDA IPC",
    "mpi": "from GPU to GPU by MPI",
    "off": "through pinned host memory",
}


@dataclass(frozen=True, slots=True)
class Settled:
    """`engine.device_buffers` of this stage's node, never `auto`; and the hand-over where it is `ipc`."""

    way: Way
    hand_over: HandOver | None = None


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Of a node: its way, and why it is none of those that come before it."""

    way: Way
    why_not: tuple[str, ...]


def settle(recipe: Recipe, device: torch.device, node: int, stages: MPI.Comm) -> Settled:
    """Find the way of this stage's `node`. Collective over `stages`, all stage ranks of a run, each with a GPU.

    Raises UserError if the recipe wants CUDA IPC and it does not work.
    """
    wanted = recipe.engine.device_buffers
    if wanted == "ipc" and recipe.nodes.stages == 1:
        return Settled("off")  # nothing is handed on
    by_ipc = hand_over(recipe, device, stages.Split(node))
    if wanted == "ipc":
        _refuse(stages, node, by_ipc)
    if isinstance(by_ipc, HandOver):
        settled, why_not = Settled("ipc", by_ipc), list[str]()
    else:
        settled, why_not = Settled("off"), [f"not by CUDA IPC: {by_ipc}"]
    # MPI may connect any two stages, so that all of them try it if one node needs it.
    if any(stages.allgather(settled.way != "ipc")):
        by_mpi = why_not_by_device(stages, device)
        if settled.way != "ipc" and by_mpi is None:
            settled = Settled("mpi")
        elif settled.way != "ipc":
            why_not.append(f"not by MPI: {by_mpi}")
    outcomes = stages.allgather((node, _Outcome(settled.way, tuple(why_not))))
    if stages.Get_rank() == 0:
        for line in told(wanted, outcomes):
            print(line, flush=True)
    return settled


def hand_over(recipe: Recipe, device: torch.device, node: MPI.Comm) -> HandOver | str:
    """By CUDA IPC between the stages of a node, or in words why not. Collective over them."""
    if node.Get_size() == 1:
        return "a node has one stage"

    def make(nbytes: int) -> Region:
        return CudaRegion(device, nbytes, CudaRuntime.of_torch())

    return connect(node, device, handed_on(recipe), make)


def why_not_by_ipc(recipe: Recipe, device: torch.device, node: int, stages: MPI.Comm) -> str | None:
    """Try it; why stages of a node cannot hand tensors on so, None if all can. Collective over `stages`, as `settle`."""
    found = hand_over(recipe, device, stages.Split(node))
    if isinstance(found, HandOver):
        found.close()
    reasons = stages.allgather(found if isinstance(found, str) else None)
    return next((reason for reason in reasons if reason is not None), None)


def told(wanted: str, outcomes: Sequence[tuple[int, _Outcome]]) -> list[str]:
    """What the log says: one line for all nodes that go the same way for the same reasons."""
    by_outcome: dict[_Outcome, set[int]] = {}
    for node, outcome in outcomes:
        by_outcome.setdefault(outcome, set()).add(node)
    lines = []
    for outcome, nodes in by_outcome.items():
        which = "" if len(by_outcome) == 1 else f"nodes {', '.join(map(str, sorted(nodes)))}: "
        why_not = "".join(f"; {reason}" for reason in outcome.why_not)
        lines.append(f"engine.device_buffers: {wanted}: {which}stages hand tensors on {SAYS[outcome.way]}{why_not}")
    return lines


def _refuse(stages: MPI.Comm, node: int, by_ipc: HandOver | str) -> None:
    reasons = stages.allgather((node, by_ipc if isinstance(by_ipc, str) else None))
    for which, reason in reasons:
        if reason is not None:
            raise UserError(
                f"engine.device_buffers: ipc, but the stages of node {which} cannot hand tensors on so: {reason}; set it to "
                "auto, mpi or off"
            )
