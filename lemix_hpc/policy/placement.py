"""Which node a task goes to. Every placement sees the forecasts of all nodes and answers with one of the candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lemix_hpc.policy.forecast import Path


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node and the path that the task would take there."""

    node: int
    path: Path


class Placement(Protocol):
    """`candidates` are never empty and come in node order."""

    def choose(self, candidates: Sequence[Candidate], *, training: bool) -> Candidate: ...


class LeastCompletion:
    """The node where the task is through first: forward end on the last stage, for training backward end on stage 0."""

    def choose(self, candidates: Sequence[Candidate], *, training: bool) -> Candidate:  # noqa: ARG002
        return min(candidates, key=lambda candidate: candidate.path.completion)


class RoundRobin:
    """Node after node, requests and training counted apart (the paper's NaiveMix)."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self._next = {False: 0, True: 0}

    def choose(self, candidates: Sequence[Candidate], *, training: bool) -> Candidate:
        turn = self._next[training]
        choice = min(candidates, key=lambda candidate: (candidate.node - turn) % self._nodes)
        self._next[training] = (choice.node + 1) % self._nodes
        return choice


class Separate:
    """A fixed split: the last `training_nodes` nodes train, the others serve; least completion within each part."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self._within = LeastCompletion()

    def choose(self, candidates: Sequence[Candidate], *, training: bool) -> Candidate:
        part = self._split.training if training else self._split.serving
        return self._within.choose([c for c in candidates if c.node in part], training=training)


@dataclass(frozen=True, slots=True)
class Split:
    """The two parts of a separated cluster."""

    serving: range
    training: range

    @staticmethod
    def of(nodes: int, training_nodes: int | None) -> Split:
        """The last `training_nodes` nodes train (default: half). Raises ValueError when a part would be empty."""
        train = nodes // 2 if training_nodes is None else training_nodes
        if not 0 < train < nodes:
            raise ValueError(f"{train} of {nodes} nodes cannot train while at least one serves")
        return Split(range(nodes - train), range(nodes - train, nodes))

    def served_by(self, trainer: int) -> tuple[int, ...]:
        """The serving nodes that get their weights from this training node: trainers take turns, so each has one source."""
        return tuple(n for n in self.serving if self.training[n % len(self.training)] == trainer)
