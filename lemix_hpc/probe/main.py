"""The whole doctor's job: every rank calls `probe`, and rank 0 writes down what is known after each step of it.

So what is found before a step that hangs is not lost, and it is known which one that is.
"""

from __future__ import annotations

import time
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import load_recipe
from lemix_hpc.probe.findings import DONE, FINDINGS, Findings, Link, RankFacts
from lemix_hpc.probe.mpi_links import host_number, links
from lemix_hpc.probe.rank_facts import facts_of_rank
from lemix_hpc.probe.run_directory import directory_times
from lemix_hpc.records.files import replace
from lemix_hpc.run_setup.scheduler_setup import Partners, partners
from lemix_hpc.runtime.transport.rank_layout import SCHEDULER_RANK, Layout
from lemix_hpc.runtime.transport.run_clock import synchronise

if TYPE_CHECKING:
    from mpi4py import MPI


class _Notes:
    """What is known so far; on rank 0 it is in a file."""

    def __init__(self, directory: Path, writes: bool) -> None:
        self._path = directory / FINDINGS
        self._writes = writes
        self.known = Findings("starting")

    def begin(self, phase: str, **found: Any) -> None:
        """Note what the steps before have found, and which one is next."""
        self.known = msgspec.structs.replace(self.known, phase=phase, **found)
        if self._writes:
            replace(self._path, msgspec.json.encode(self.known))


def probe(directory: Path) -> None:
    """Find out about the ranks of the recipe in `directory`; collective over MPI.COMM_WORLD, which has a run's size."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    recipe, rank = load_recipe(directory / "recipe.yaml"), comm.Get_rank()
    layout = Layout(recipe.nodes.count, recipe.nodes.stages)
    notes = _Notes(directory, rank == SCHEDULER_RANK)
    notes.begin("the clocks of all ranks")
    clock_off = _clock_off(comm)
    notes.begin("each rank's device and software")
    host = comm.Split_type(MPI.COMM_TYPE_SHARED)
    stage = layout.stage_of(rank)
    stages_before = sum(host.allgather(stage is not None)[: host.Get_rank()])
    facts = facts_of_rank(recipe, rank, layout.role(rank), None if stage is None else stages_before, clock_off)
    notes.begin("messages between ranks", ranks=comm.allgather(facts))
    notes.begin("the run directory", links=list(chain(*comm.allgather(links(comm, layout)))))
    times = directory_times(comm, directory, facts.host, host_number(comm) == rank)
    notes.begin("transfers of GPU memory by MPI", directory=[one for one in comm.allgather(times) if one is not None])
    stages = [one for one in notes.known.ranks if layout.stage_of(one.rank) is not None]
    on_gpus = all(one.gpu is not None for one in stages)
    if on_gpus:
        _try_gpus(comm, layout, notes, facts, directory)
    across, sound = partners(recipe), all(one.device is not None for one in stages)
    if across is not None and sound and (across.collective or (across.mode == "sync" and on_gpus)):
        _try_sums(comm, layout, notes, facts, across)
    notes.begin(DONE)


def _clock_off(comm: MPI.Comm) -> float:
    """By how much the time of day is later on this rank's host than on rank 0's [s]."""
    clock = synchronise(comm)
    ahead = time.time() - clock.monotonic()
    theirs: float = comm.bcast(ahead)
    return ahead - theirs


def _try_gpus(comm: MPI.Comm, layout: Layout, notes: _Notes, facts: RankFacts, directory: Path) -> None:
    """What the stages' GPUs send each other, by MPI, by CUDA IPC and by NCCL. Collective, and each stage has a GPU."""
    import torch

    from lemix_hpc.engines.torch.between_stages import why_not_by_ipc
    from lemix_hpc.engines.torch.device_buffers import why_not_by_device

    is_stage = facts.device is not None
    stages = comm.Split(is_stage)
    why_not = (why_not_by_device(stages, torch.device(facts.device)) or "") if facts.device is not None else None
    by_device = next(why for why in comm.allgather(why_not) if why is not None)
    notes.begin("transfers of GPU memory by CUDA IPC", by_device=by_device)
    node, recipe = layout.node_of(facts.rank), load_recipe(directory / "recipe.yaml")
    by_ipc = (
        (why_not_by_ipc(recipe, torch.device(facts.device), node, stages) or "") if facts.device is not None else ""
    )
    notes.begin("NCCL between the stages of a node", by_ipc=next((why for why in comm.allgather(by_ipc) if why), ""))
    found, fault = _nccl(layout, facts, directory) if is_stage else ([], None)
    gathered: list[tuple[list[Link], str | None]] = comm.allgather((found, fault))
    faults = [fault for _, fault in gathered if fault is not None]
    notes.begin(DONE, nccl=list(chain(*(found for found, _ in gathered))), nccl_fault=faults[0] if faults else None)


def _try_sums(comm: MPI.Comm, layout: Layout, notes: _Notes, facts: RankFacts, across: Partners) -> None:
    """Sums of gradients over nodes, by what `training.sums: collective` would take. Collective."""
    import torch

    from lemix_hpc.probe.node_sums import node_sums

    notes.begin("sums over nodes by torch's all-reduce")
    node, stage = layout.node_of(facts.rank), layout.stage_of(facts.rank)
    stages = comm.Split(stage is not None)
    found, fault = None, None
    if stage is not None and facts.device is not None:
        try:
            found = node_sums(torch.device(facts.device), stage if node in across.nodes else -1, stages)
        except UserError as error:  # all of them raise it
            fault = str(error)
    gathered: list[tuple[float | None, str | None]] = comm.allgather((found, fault))
    slowest = min((speed for speed, _ in gathered if speed is not None), default=None)
    notes.begin(DONE, sums=slowest, sums_fault=next((each for _, each in gathered if each is not None), None))


def _nccl(layout: Layout, facts: RankFacts, directory: Path) -> tuple[list[Link], str | None]:
    """The links that this stage has measured, or what stood against it."""
    import torch

    from lemix_hpc.probe.stage_links import stage_links

    node, stage = layout.node_of(facts.rank), layout.stage_of(facts.rank)
    assert stage is not None, "leaders have no device"
    ranks = [layout.worker(node, each) for each in range(layout.stages)]
    try:
        return stage_links(stage, ranks, torch.device(facts.device or "cpu"), directory / f"meeting-{node}"), None
    except Exception as error:  # noqa: BLE001  of torch or NCCL: it is what was to be found out
        return [], f"rank {facts.rank}: {type(error).__name__}: {' '.join(str(error).split())}"
