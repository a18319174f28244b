"""The journals of a run's attempts, folded record by record into what they come to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from lemix_hpc.records.attempts import Attempt, AttemptStart, EndReason
from lemix_hpc.records.journal import (
    Accepted,
    Answered,
    Changed,
    Ended,
    GroupCut,
    GroupPlaced,
    Placed,
    Record,
    Stepped,
    Trained,
)
from lemix_hpc.records.last_answers import LastAnswers
from lemix_hpc.records.schema import Outcome, ServedTask, TrainedTask

POISON: frozenset[EndReason] = frozenset({"error", "out-of-memory"})
"""Ends that a request may have caused. One that was on a node at two of them in a row is not tried again."""


class Fold(msgspec.Struct, kw_only=True):
    """The records of a lineage, one after the other.

    `on_nodes`: tasks that the last attempt had placed and not ended. `suspects`: those that were on a node at its end, and, if
    it is the second crash in a row (`twice`), at the one before. `answered`: outcomes by answers, of what has no other yet.
    """

    served: list[ServedTask] = []
    trained: list[TrainedTask] = []
    steps: list[Stepped] = []
    cuts: dict[int, GroupCut] = {}
    places: dict[int, int] = {}
    answers: LastAnswers = msgspec.field(default_factory=LastAnswers)
    waiting: dict[int, Accepted] = {}
    next_number: int = 0
    clock: float = 0.0
    damage: list[str] = []
    changes: list[Changed] = []
    suspects: set[int] = set()
    twice: bool = False
    answered: dict[int, ServedTask] = {}
    on_nodes: set[int] = set()
    crashed: bool = False

    @property
    def poison(self) -> frozenset[int]:
        """Requests that are not to be tried again."""
        return frozenset(self.suspects) & frozenset(self.waiting) if self.twice else frozenset()

    def begin(self, start: AttemptStart) -> None:
        """An attempt goes on from here."""
        self.cut_back(start.versions)
        self.clock = max(self.clock, start.clock)
        self.on_nodes = set()

    def cut_back(self, versions: Mapping[int, int]) -> None:
        """Training behind these versions is done again."""
        self.steps = [step for step in self.steps if step.version <= versions.get(step.node, 0)]
        self.trained = [
            task
            for task in self.trained
            if task.node is not None and task.step is not None and task.step <= versions.get(task.node, 0)
        ]

    @property
    def versions(self) -> dict[int, int]:
        """The newest of each node's weights."""
        newest: dict[int, int] = {}
        for step in self.steps:
            for node in step.nodes or (step.node,):
                newest[node] = max(step.version, newest.get(node, 0))
        return newest

    def add(self, record: Record) -> None:
        """What it has written down next."""
        match record:
            case Accepted(number, _, time):
                self.waiting[number] = record
                self.next_number = max(self.next_number, number + 1)
                self.clock = max(self.clock, time)
            case Placed(number, _):
                self.on_nodes.add(number)
                self.next_number = max(self.next_number, number + 1)
            case Answered(number, _, _, time):
                self.answers.add(record)
                self.clock = max(self.clock, time)
                if number in self.waiting:
                    self.answered[number] = _told_by(record, self.waiting[number])
            case Ended(task):
                self.served.append(task)
                self.clock = max(self.clock, task.finished or task.arrival)
                if task.number is not None:
                    self.waiting.pop(task.number, None)
                    self.answered.pop(task.number, None)
                    self.on_nodes.discard(task.number)
            case Trained(task):
                self.trained.append(task)
            case Stepped(time=time):
                self.steps.append(record)
                self.clock = max(self.clock, time)
            case GroupCut(group):
                self.cuts[group] = record
            case GroupPlaced(group, node):
                self.places[group] = node
            case Changed():
                self.changes.append(record)

    def end_answered(self) -> None:
        """What was answered has its outcome, if no more was written down before the end, too."""
        for number, task in self.answered.items():
            self.served.append(task)
            del self.waiting[number]
        self.answered.clear()

    def told_by_steps(self) -> Iterator[TrainedTask]:
        """Micro-batches that are in a step that counts, of which no more was written down before the end."""
        told = {task.id for task in self.trained}
        for step in self.steps:
            for cut in (self.cuts[group] for group in step.groups if group in self.cuts):
                for id, tokens in zip(cut.ids, cut.tokens, strict=True):
                    if id not in told:
                        yield TrainedTask(
                            id, "finished", step.time, tokens, step.node, finished=step.time, step=step.version
                        )

    def end(self, attempt: Attempt) -> None:
        """What was on a node at two ends in a row that it may have caused is a suspect."""
        end = attempt.ended
        crashed = end is not None and end.reason in POISON
        self.twice = crashed and self.crashed
        self.suspects = self.suspects & self.on_nodes if self.twice else set(self.on_nodes)
        self.crashed = crashed


def _told_by(answer: Answered, accepted: Accepted) -> ServedTask:
    outcome: Outcome = "rejected" if answer.status >= 400 else "finished"
    return ServedTask(
        accepted.id,
        outcome,
        accepted.time,
        accepted.prompt_tokens,
        finished=answer.time,
        number=accepted.number,
        service=accepted.service,
    )
