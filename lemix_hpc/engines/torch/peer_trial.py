"""The start of a hand-over: the stages of a node map each other's regions, and try whether what is handed on arrives."""

from __future__ import annotations

import mmap
import os
import platform
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from lemix_hpc.engines.host_files import SHARED_MEMORY
from lemix_hpc.engines.torch.hand_over import Board, HandOver, PeerCopies, Ticket
from lemix_hpc.engines.torch.handed_on import GRAIN

if TYPE_CHECKING:
    from mpi4py import MPI

TRIAL_BYTES = 1 << 20
SMALLEST = 4 * TRIAL_BYTES
"""Bytes of a region: a stage has up to three others to try."""


class Region(PeerCopies, Protocol):
    """Memory of this stage's device, and what others open it by."""

    handle: bytes

    def open(self, owner: int, handle: bytes) -> None:
        """Map the region of stage `owner`."""
        ...

    def give_back(self) -> None:
        """Free the own memory; nobody else has it mapped."""
        ...


@dataclass(slots=True)
class _End:
    """What this stage brings, as far as it got: its region and board, and the boards of others."""

    region: Region | None = None
    board: Board | None = None
    path: str = ""
    opened: dict[int, Board] = field(default_factory=dict)


def connect(node: MPI.Comm, device: torch.device, nbytes: int, make: Callable[[int], Region]) -> HandOver | str:
    """The hand-over of this stage, with a region of at least `nbytes` by `make`, or in words why there is none on the node.

    Collective over `node`, the stages of one node, in their order; all of them get one, or none.
    """
    hosts = sorted(set(node.allgather(platform.node())))
    if len(hosts) > 1:
        return f"the stages of a node are on {len(hosts)} hosts, such as {hosts[0]} and {hosts[1]}"
    size = -(-max(nbytes, SMALLEST) // GRAIN) * GRAIN
    end, own = _End(), node.Get_rank()
    fault = _first(node, _attempt(lambda: _prepare(end, size, make)))
    if fault is None and end.region is not None:
        offers = node.allgather((end.region.handle, end.path))
        fault = _first(node, _attempt(lambda: _open_others(end, own, offers)))
    # Whoever reads a board has it open now.
    if end.path:
        Path(end.path).unlink()
    hand_over = None
    if fault is None and end.region is not None and end.board is not None:
        hand_over = HandOver(own, size, {own: end.board} | end.opened, end.region)
        fault = _try(node, device, hand_over)
    if hand_over is not None and fault is None:
        return hand_over
    _give_up(node, end)
    return fault or "nothing was tried"


def _prepare(end: _End, size: int, make: Callable[[int], Region]) -> None:
    end.region = make(size)
    descriptor, end.path = tempfile.mkstemp(prefix="lemix-board-", dir=SHARED_MEMORY)
    with os.fdopen(descriptor, "r+b") as file:
        file.truncate(size // GRAIN)
        end.board = memoryview(mmap.mmap(file.fileno(), 0))


def _open_others(end: _End, own: int, offers: list[tuple[bytes, str]]) -> None:
    assert end.region is not None, "every stage has one"
    for other in others(own, len(offers)):
        handle, path = offers[other]
        end.region.open(other, handle)
        with Path(path).open("r+b") as file:
            end.opened[other] = memoryview(mmap.mmap(file.fileno(), 0))


def others(stage: int, stages: int) -> list[int]:
    """Those that a stage exchanges something with: its neighbours, and the first and the last one each other."""
    met = {stage - 1, stage + 1}
    if stage in (0, stages - 1):
        met |= {0, stages - 1}
    return sorted(other for other in met - {stage} if 0 <= other < stages)


def _try(node: MPI.Comm, device: torch.device, hand_over: HandOver) -> str | None:
    """Give each of the others a pattern, and look at what they gave. The first thing that went wrong on any stage."""
    own = node.Get_rank()
    tickets: list[bytes | None] = [None] * node.Get_size()

    def give() -> str | None:
        for other in others(own, len(tickets)):
            ticket = hand_over.give(_pattern(own, other, device))
            tickets[other] = None if ticket is None else bytes(ticket)
        return None

    fault = _first(node, _attempt(give))
    if fault is not None:
        return fault
    arrived = node.alltoall(tickets)

    def look() -> str | None:
        met = others(own, len(tickets))
        return next(
            filter(None, (_look(hand_over, arrived[each], _pattern(each, own, device), each) for each in met)), None
        )

    fault = _first(node, _attempt(look))
    # All have looked now, and let go.
    return fault or _first(node, None if hand_over.all_read else "nobody lets go of what was given")


def _attempt(step: Callable[[], str | None]) -> str | None:
    """What is wrong by a step, or the error that it ended with: of CUDA, torch or the host. Then it is another way's turn."""
    try:
        return step()
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _look(hand_over: HandOver, ticket: bytes | None, expected: torch.Tensor, other: int) -> str | None:
    if ticket is None:
        return f"stage {other} has no room to give it something"
    found = hand_over.take(Ticket(ticket))
    hand_over.settle()
    hand_over.let_go()
    return None if torch.equal(found, expected) else f"what arrived from stage {other} is not what was given"


def _pattern(giver: int, reader: int, device: torch.device) -> torch.Tensor:
    return (torch.arange(TRIAL_BYTES, device=device) % 251 + 7 * giver + reader).to(torch.uint8)


def _first(node: MPI.Comm, fault: str | None) -> str | None:
    """The first fault of any stage."""
    faults = node.allgather(fault)
    return next((f"stage {stage}: {told}" for stage, told in enumerate(faults) if told is not None), None)


def _give_up(node: MPI.Comm, end: _End) -> None:
    """Memory that is still mapped elsewhere must not be given back."""
    with ExitStack() as stack:
        if end.region is not None:
            stack.callback(end.region.give_back)
            stack.callback(node.Barrier)
            stack.callback(end.region.close)
        else:
            stack.callback(node.Barrier)
