"""When training micro-batches are released: the chain rule of the paper, one chain (lane) per node.

A lane is where one group at a time is fed to a node. `async`: a micro-batch follows when the one before it has finished
its forward on the first stage, across group boundaries. `sync`: a whole group goes at once, the next one when the last
backward of the group has left the first stage.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lemix_hpc.policy.latency import Shape

Release = Literal["async", "sync"]


@dataclass(frozen=True, slots=True)
class Group:
    """Micro-batches of one optimizer step, each of this shape; they stay on one node."""

    id: int
    tasks: tuple[int, ...]
    shape: Shape


@dataclass(frozen=True, slots=True)
class Released:
    """A micro-batch that may go to its node now."""

    task: int
    node: int
    shape: Shape


@dataclass(slots=True)
class _Open:
    group: Group
    node: int
    placed: int = 0


class TrainingRelease:
    """Holds offered groups back until a lane is free, and says which micro-batches may go where."""

    def __init__(self, rule: Release, lanes: int) -> None:
        self._rule = rule
        self._free = lanes
        self._offered: deque[Group] = deque()
        self._open: dict[int, _Open] = {}
        self._member: dict[int, int] = {}

    def offer(self, group: Group) -> None:
        self._offered.append(group)

    def close(self) -> None:
        """Drop what was offered and not begun."""
        self._offered.clear()

    @property
    def busy_nodes(self) -> set[int]:
        """Nodes that are still being fed a group; another group would mix its gradients with theirs."""
        return {open_.node for open_ in self._open.values()}

    def start(self, place: Callable[[Group], int]) -> list[Released]:
        """Open as many groups as there are free lanes; `place` picks a node that is not busy. Returns what may go."""
        released: list[Released] = []
        while self._free and self._offered:
            group = self._offered.popleft()
            open_ = _Open(group, place(group))
            self._open[group.id] = open_
            self._free -= 1
            for task in group.tasks:
                self._member[task] = group.id
            released += self._release(open_, len(group.tasks) if self._rule == "sync" else 1)
        return released

    def finished(self, task: int, stage: int, *, backward: bool) -> list[Released]:
        """A micro-batch has passed a stage; what may follow it on the same node. May free a lane for `start`."""
        if stage != 0 or backward != (self._rule == "sync") or task not in self._member:
            return []
        open_ = self._open[self._member[task]]
        if task != open_.group.tasks[-1]:
            return [] if self._rule == "sync" else self._release(open_, 1)
        del self._open[open_.group.id]
        for member in open_.group.tasks:
            del self._member[member]
        self._free += 1
        return []

    @staticmethod
    def _release(open_: _Open, count: int) -> list[Released]:
        tasks = open_.group.tasks[open_.placed : open_.placed + count]
        open_.placed += len(tasks)
        return [Released(task, open_.node, open_.group.shape) for task in tasks]
