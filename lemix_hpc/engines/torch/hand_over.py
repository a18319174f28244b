"""Tensors that one stage hands to another through memory of its device that both have mapped.

Every stage has a region of its device's memory that its neighbours read from. What is handed on is copied into a room of it,
and the message says where that is. The receiver copies it to memory of its own, and lets go of the room by a byte on a board
that both see. No message is more than without this, and none comes in another order. Where the region is full, a tensor goes
another way.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from lemix_hpc.engines.torch.handed_on import GRAIN
from lemix_hpc.engines.torch.training_queue import Mark

FREE, TAKEN = 0, 1
_PLACE = struct.Struct("<3Q")


class Board(Protocol):
    """One byte for each grain of a region; that of a room's first one is TAKEN until its reader sets it FREE."""

    def __getitem__(self, grain: int, /) -> int: ...

    def __setitem__(self, grain: int, value: int, /) -> None: ...


class PeerCopies(Protocol):
    """What a hand-over needs of a device. Copies and marks are queued on the current stream, and run later in its order."""

    def write(self, source: torch.Tensor, offset: int) -> None:
        """Queue a copy of bytes into this stage's region."""
        ...

    def settle(self) -> None:
        """Return when all has run that the current stream was given."""
        ...

    def empty(self, nbytes: int) -> torch.Tensor:
        """Memory of one's own, whose first use has to be queued on the current stream. Raises torch.OutOfMemoryError."""
        ...

    def read(self, owner: int, offset: int, target: torch.Tensor) -> None:
        """Queue a copy out of the region of stage `owner`."""
        ...

    def mark(self) -> Mark:
        """The end of what the current stream has been given so far."""
        ...

    def follow(self, mark: Mark | None, memory: torch.Tensor) -> None:
        """Let the current stream go on behind `mark`, and keep the memory until what it is given then has run."""
        ...

    def close(self) -> None:
        """Let go of the other stages' regions."""
        ...


@dataclass(frozen=True, slots=True)
class _Kept:
    """Bytes that are on this stage, or will be behind `mark`."""

    flat: torch.Tensor
    mark: Mark | None = None


class Ticket(bytearray):
    """Where something that was handed on lies, as the bytes that MPI sends: owner, offset and size. `kept`: what it stands for,
    on a stage that has it."""

    SIZE = _PLACE.size
    kept: _Kept | None = None

    @property
    def nbytes(self) -> int:
        return len(self)


@dataclass(frozen=True, slots=True, eq=False)
class _Reading:
    """A copy out of another stage's region, over when `mark` is reached."""

    board: Board
    entry: int
    mark: Mark


class HandOver:
    """This stage's region, of `nbytes`, and its way to those of the stages that hand it something, each with its board.

    `unread`: what is given is read by nobody, as in a profiling job, and its room is free again at once.
    """

    def __init__(self, own: int, nbytes: int, boards: Mapping[int, Board], copies: PeerCopies) -> None:
        self._own = own
        self._boards = boards
        self._copies = copies
        self._rooms = Rooms(nbytes)
        self._reading: list[_Reading] = []
        self.unread = False

    def give(self, flat: torch.Tensor) -> Ticket | None:
        """Put bytes where another stage reads them, complete when this returns; None where there is no room. The ticket is
        for one reader on another stage."""
        offset = self._rooms.take(flat.numel(), self._boards[self._own])
        if offset is None:
            return None
        self._copies.write(flat, offset)
        # The reader's device does not know of our streams: what it is told of must be there.
        self._copies.settle()
        self.let_go()
        if self.unread:
            self._boards[self._own][offset // GRAIN] = FREE
        ticket = Ticket(_PLACE.pack(self._own, offset, flat.numel()))
        ticket.kept = _Kept(flat)
        return ticket

    def take(self, ticket: Ticket) -> torch.Tensor:
        """The bytes that a ticket stands for, for the current stream. The same ones again where it is asked again.

        Raises torch.OutOfMemoryError, after which it may be asked again.
        """
        kept = ticket.kept
        if kept is not None:
            self._copies.follow(kept.mark, kept.flat)
            return kept.flat
        owner, offset, nbytes = _PLACE.unpack(ticket)
        flat = self._copies.empty(nbytes)
        self._copies.read(owner, offset, flat)
        mark = self._copies.mark()
        self._reading.append(_Reading(self._boards[owner], offset // GRAIN, mark))
        ticket.kept = _Kept(flat, mark)
        self.let_go()
        return flat

    def let_go(self) -> None:
        """Free the rooms that have been read."""
        over = [reading for reading in self._reading if reading.mark.query()]
        for reading in over:
            reading.board[reading.entry] = FREE
        self._reading = [reading for reading in self._reading if reading not in over]

    @property
    def all_read(self) -> bool:
        """Whether nothing that was given away is still to be read, and nothing is being read here."""
        self.let_go()
        return not self._reading and self._rooms.empty(self._boards[self._own])

    def settle(self) -> None:
        """Return when what was taken is there."""
        self._copies.settle()

    def close(self) -> None:
        """Let go of the other stages' regions; the last call."""
        self._copies.close()


class Rooms:
    """Which parts of a region are in use: the first gap that is large enough is taken."""

    def __init__(self, nbytes: int) -> None:
        self._grains = nbytes // GRAIN
        self._taken: list[range] = []

    def take(self, nbytes: int, board: Board) -> int | None:
        """The offset of a room, which is TAKEN on the board; None if there is none."""
        self._free(board)
        size, start = -(-nbytes // GRAIN), 0
        for index, room in enumerate([*self._taken, range(self._grains, self._grains)]):
            if room.start - start >= size:
                self._taken.insert(index, range(start, start + size))
                board[start] = TAKEN
                return start * GRAIN
            start = room.stop
        return None

    def empty(self, board: Board) -> bool:
        self._free(board)
        return not self._taken

    def _free(self, board: Board) -> None:
        self._taken = [room for room in self._taken if board[room.start] == TAKEN]
