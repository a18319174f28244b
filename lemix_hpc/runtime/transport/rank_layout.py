"""Which rank does what: N nodes of one leader and S stage workers each; rank 0 is also the scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

SCHEDULER_RANK = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """The ranks of one MPI world."""

    nodes: int
    stages: int

    @property
    def size(self) -> int:
        return self.nodes * (self.stages + 1)

    def node_of(self, rank: int) -> int:
        return rank // (self.stages + 1)

    def stage_of(self, rank: int) -> int | None:
        """The stage that a rank computes, None for a leader."""
        place = rank % (self.stages + 1)
        return None if place == 0 else place - 1

    def leader(self, node: int) -> int:
        return node * (self.stages + 1)

    def worker(self, node: int, stage: int) -> int:
        return self.leader(node) + 1 + stage

    def by_node(self, values: Sequence[T]) -> list[Sequence[T]]:
        """Those of each node's stages, of values of all ranks."""
        return [values[self.worker(node, 0) : self.worker(node, self.stages)] for node in range(self.nodes)]

    def role(self, rank: int) -> str:
        """What a rank is, in words for logs and errors."""
        stage = self.stage_of(rank)
        return f"node {self.node_of(rank)}, " + ("leader" if stage is None else f"stage {stage}")
