"""What an attempt goes on from: the journals of those before it, folded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from lemix_hpc.records.attempts import Attempt, AttemptStart, EndReason, lineage
from lemix_hpc.records.journal import (
    Accepted,
    Answered,
    Ended,
    GroupCut,
    GroupPlaced,
    Placed,
    Record,
    Stepped,
    Trained,
    read_journal,
)
from lemix_hpc.records.last_answers import LastAnswers
from lemix_hpc.records.schema import Outcome, ServedTask, TrainedTask

POISON: frozenset[EndReason] = frozenset({"error", "out-of-memory"})
"""Ends that a request may have caused. One that was on a node at two of them in a row is not tried again."""


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What counts of the attempts so far.

    `journal_bytes`: of the last of them. `served`, `trained`: tasks with their outcomes, in order. `answers`: that clients were
    given last. `waiting`: requests that came and have no outcome, by number; `poison`: those of them that are not to be tried
    again. `next_number`: of tasks. `cuts`: groups of training in order; `places`: the node that each was trained on last;
    `done`: those that are in the weights that training goes on from. `steps` made these, and `versions` are those of each
    node's weights. `clock`: where the time of the run goes on [s]. `damage`: what could not be read, for people.
    """

    last: Attempt | None = None
    journal_bytes: int = 0
    served: list[ServedTask] = field(default_factory=list)
    trained: list[TrainedTask] = field(default_factory=list)
    answers: list[Answered] = field(default_factory=list)
    waiting: dict[int, Accepted] = field(default_factory=dict)
    poison: frozenset[int] = frozenset()
    next_number: int = 0
    cuts: list[GroupCut] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)
    done: frozenset[int] = frozenset()
    steps: int = 0
    versions: dict[int, int] = field(default_factory=dict)
    clock: float = 0.0
    damage: list[str] = field(default_factory=list)


NOTHING = Inheritance()
"""Of the first attempt."""


def inherit(run_dir: Path, versions: Mapping[int, int] | None) -> Inheritance:
    """Fold the journals of a run's attempts. `versions`: of each node's weights that training goes on from; 0 without. None:
    there are no weights, and every step counts.

    Training that came later than these does not count: it is done again. Raises OSError if a journal cannot be read.
    """
    line = lineage(run_dir)
    if not line:
        return NOTHING
    fold, length = _Fold(), 0
    for attempt, successor in pairwise([*line, None]):
        start = attempt.started if attempt is not None else None
        assert attempt is not None and start is not None, "only attempts that started are in a lineage"
        fence = successor.started if successor is not None else None
        content = read_journal(attempt.journal, fence.journal_bytes if fence is not None else None)
        fold.begin(start)
        for record in content.records:
            fold.add(record)
        fold.end(attempt)
        fold.damage += content.damage
        length = content.length
    if versions is None:
        versions = fold.versions
    fold.cut_back(versions)
    fold.end_answered()
    return Inheritance(
        last=line[-1],
        journal_bytes=length,
        served=fold.served,
        trained=[*fold.trained, *fold.told_by_steps()],
        answers=list(fold.answers),
        waiting=fold.waiting,
        poison=frozenset(fold.suspects) & frozenset(fold.waiting) if fold.twice else frozenset(),
        next_number=fold.next_number,
        cuts=[fold.cuts[group] for group in sorted(fold.cuts)],
        places=fold.places,
        done=frozenset(group for step in fold.steps for group in step.groups),
        steps=len(fold.steps),
        versions=dict(versions),
        clock=fold.clock,
        damage=fold.damage,
    )


def _told_by(answer: Answered, accepted: Accepted) -> ServedTask:
    outcome: Outcome = "rejected" if answer.status >= 400 else "finished"
    return ServedTask(
        accepted.id,
        outcome,
        accepted.time,
        accepted.prompt_tokens,
        finished=answer.time,
        number=accepted.number,
    )


class _Fold:
    """The records of a lineage, one after the other."""

    def __init__(self) -> None:
        self.served: list[ServedTask] = []
        self.trained: list[TrainedTask] = []
        self.steps: list[Stepped] = []
        self.cuts: dict[int, GroupCut] = {}
        self.places: dict[int, int] = {}
        self.answers = LastAnswers()
        self.waiting: dict[int, Accepted] = {}
        self.next_number = 0
        self.clock = 0.0
        self.damage: list[str] = []
        self.suspects: set[int] = set()
        self.twice = False
        self._answered: dict[int, ServedTask] = {}
        self._on_nodes: set[int] = set()
        self._crashed = False

    def begin(self, start: AttemptStart) -> None:
        self.cut_back(start.versions)
        self.clock = max(self.clock, start.clock)
        self._on_nodes = set()

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
        match record:
            case Accepted(number, _, time):
                self.waiting[number] = record
                self.next_number = max(self.next_number, number + 1)
                self.clock = max(self.clock, time)
            case Placed(number, _):
                self._on_nodes.add(number)
                self.next_number = max(self.next_number, number + 1)
            case Answered(number, _, _, time):
                self.answers.add(record)
                self.clock = max(self.clock, time)
                if number in self.waiting:
                    self._answered[number] = _told_by(record, self.waiting[number])
            case Ended(task):
                self.served.append(task)
                self.clock = max(self.clock, task.finished or task.arrival)
                if task.number is not None:
                    self.waiting.pop(task.number, None)
                    self._answered.pop(task.number, None)
                    self._on_nodes.discard(task.number)
            case Trained(task):
                self.trained.append(task)
            case Stepped(_, _, _, time, _):
                self.steps.append(record)
                self.clock = max(self.clock, time)
            case GroupCut(group):
                self.cuts[group] = record
            case GroupPlaced(group, node):
                self.places[group] = node

    def end_answered(self) -> None:
        """What was answered has its outcome, if no more was written down before the end, too."""
        for number, task in self._answered.items():
            self.served.append(task)
            del self.waiting[number]
        self._answered.clear()

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
        self.twice = crashed and self._crashed
        self.suspects = self.suspects & self._on_nodes if self.twice else set(self._on_nodes)
        self._crashed = crashed
