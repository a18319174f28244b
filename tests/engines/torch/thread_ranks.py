"""Ranks that are threads of this process, with the collective calls of MPI that the start of a run makes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class _World:
    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=120)
        self.values: list[Any] = [None] * size
        self.parts: dict[Any, _World] = {}


class ThreadRank:
    """One rank's communicator."""

    def __init__(self, world: _World, rank: int) -> None:
        self._world = world
        self._rank = rank

    def Get_rank(self) -> int:  # noqa: N802  as in MPI
        return self._rank

    def Get_size(self) -> int:  # noqa: N802
        return len(self._world.values)

    def Barrier(self) -> None:  # noqa: N802
        self._world.barrier.wait()

    def allgather(self, value: Any) -> list[Any]:
        self._world.values[self._rank] = value
        self._world.barrier.wait()
        gathered = list(self._world.values)
        self._world.barrier.wait()
        return gathered

    def alltoall(self, values: list[Any]) -> list[Any]:
        return [row[self._rank] for row in self.allgather(values)]

    def Split(self, color: Any) -> ThreadRank:  # noqa: N802
        colors = self.allgather(color)
        members = [rank for rank, other in enumerate(colors) if other == color]
        if self._rank == members[0]:
            self._world.parts[color] = _World(len(members))
        self._world.barrier.wait()
        return ThreadRank(self._world.parts[color], members.index(self._rank))


def on_ranks(size: int, call: Callable[[Any], T]) -> list[T]:
    """What `call` returns on each rank; the first error of any is raised."""
    world = _World(size)

    def run(rank: int) -> T:
        try:
            return call(ThreadRank(world, rank))
        except BaseException:
            world.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    real = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    for error in real or errors:
        raise error
    return [future.result() for future in futures]
