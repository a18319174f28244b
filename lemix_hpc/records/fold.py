"""The journals of a run's attempts, folded record by record into what somebody still needs of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

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
from lemix_hpc.records.parts import Reach
from lemix_hpc.records.places import Places
from lemix_hpc.records.schema import Outcome, ServedTask, TrainedTask
from lemix_hpc.records.tally import Tally
from lemix_hpc.records.training_fold import TrainingFold

POISON: frozenset[EndReason] = frozenset({"error", "out-of-memory"})
"""Ends that a request may have caused. One that was on a node at two of them in a row is not tried again."""


class Fold(msgspec.Struct, kw_only=True):
    """The records of a lineage, one after the other. What has its outcome is counted, and is found in `tasks.jsonl`, of which
    that of the last attempt counts up to `reach`, and `results` lines of its `results.jsonl`.

    `over`: places in the workload of requests that have their outcome; `turns`: of next turns that have not come, and when
    the request before each finished [s]; `newest`: the last place of one that has come, -1 before any has, and its id.

    `lost`: ids of requests without an answer. `answered`: outcomes by answers, of what has no other yet. `on_nodes`: requests
    that the last attempt had placed and not ended. `suspects`: those that were on a node at its end, and, if it is the second
    crash in a row (`twice`), at the one before.
    """

    reach: Reach = Reach()
    results: int = 0
    over: Places = msgspec.field(default_factory=Places)
    turns: dict[int, float] = {}
    newest: tuple[int, str] = (-1, "")
    tally: Tally = msgspec.field(default_factory=Tally)
    lost: list[str] = []
    training: TrainingFold = msgspec.field(default_factory=TrainingFold)
    answers: LastAnswers = msgspec.field(default_factory=LastAnswers)
    waiting: dict[int, Accepted] = {}
    answered: dict[int, ServedTask] = {}
    next_number: int = 0
    clock: float = 0.0
    changes: list[Changed] = []
    damage: list[str] = []
    on_nodes: set[int] = set()
    suspects: set[int] = set()
    twice: bool = False
    crashed: bool = False

    @property
    def poison(self) -> frozenset[int]:
        """Requests that are not to be tried again."""
        return frozenset(self.suspects) & frozenset(self.waiting) if self.twice else frozenset()

    def begin(self, start: AttemptStart) -> None:
        """An attempt goes on from here. It has its own `tasks.jsonl` and `results.jsonl`."""
        self.training.cut_back(start.versions)
        self.clock = max(self.clock, start.clock)
        self.reach, self.results = Reach(), 0

    def add(self, record: Record) -> None:
        """What it has written down next."""
        match record:
            case Accepted(number, _, time):
                self.waiting[number] = record
                self._has_come(record.place)
                self.newest = max(self.newest, (-1 if record.place is None else record.place, record.id))
                self.next_number = max(self.next_number, number + 1)
                self.clock = max(self.clock, time)
            case Placed(number, _):
                if number in self.waiting:
                    self.on_nodes.add(number)
                self.next_number = max(self.next_number, number + 1)
            case Answered(number, _, _, time):
                self.answers.add(record)
                self.clock = max(self.clock, time)
                if number in self.waiting:
                    self.answered[number] = _told_by(record, self.waiting[number])
            case Ended(task, reach):
                self.reach, self.results = reach, record.results
                self._end_in_workload(record)
                self.end_request(task)
            case Trained(task, reach):
                self.reach = reach
                self.training.tell(task)
            case Stepped(time=time):
                self.training.steps.append(record)
                self.clock = max(self.clock, time)
            case GroupCut(group):
                self.training.cuts[group] = record
            case GroupPlaced(group, node):
                self.training.places[group] = node
            case Changed():
                self.changes.append(record)

    def _has_come(self, place: int | None) -> None:
        if place is not None:
            self.turns.pop(place, None)

    def _end_in_workload(self, ended: Ended) -> None:
        self._has_come(ended.place)
        if ended.place is None:
            return
        self.over.add(ended.place)
        if ended.followed and ended.task.finished is not None:
            self.turns[ended.place + 1] = ended.task.finished

    def end_request(self, task: ServedTask) -> None:
        """A request has its outcome."""
        self.tally.add(task)
        self.clock = max(self.clock, task.finished or task.arrival)
        if task.outcome == "lost":
            self.lost.append(task.id)
        if task.number is not None:
            self.waiting.pop(task.number, None)
            self.answered.pop(task.number, None)
            self.on_nodes.discard(task.number)

    def end_answered(self) -> Iterator[ServedTask]:
        """What was answered has its outcome, if no more was written down before the end, too."""
        for task in list(self.answered.values()):
            self.end_request(task)
            yield task

    def end_training(self) -> Iterator[TrainedTask]:
        """Micro-batches that are in a step that counts have their outcome, if no more was written down before the end, too."""
        for task in list(self.training.untold()):
            self.training.tell(task)
            yield task

    def end(self, attempt: Attempt) -> None:
        """What was on a node at two ends in a row that it may have caused is a suspect."""
        end = attempt.ended
        crashed = end is not None and end.reason in POISON
        self.twice = crashed and self.crashed
        self.suspects = self.suspects & self.on_nodes if self.twice else set(self.on_nodes)
        self.crashed = crashed
        self.on_nodes = set()

    def forget(self, saved: Mapping[int, int] | None) -> None:
        """Training never goes back behind these versions of the weights; None: it never goes back at all."""
        self.training.forget(self.training.versions if saved is None else saved)


def encode(fold: Fold) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(fold, enc_hook=_to_list))


def decode(content: msgspec.Raw) -> Fold:
    """Raises one of BROKEN_JSON for that of another version."""
    return msgspec.msgpack.decode(content, type=Fold, dec_hook=_from_list)


def _to_list(answers: Any) -> list[Answered]:
    assert isinstance(answers, LastAnswers), "all else are records"
    return list(answers)


def _from_list(kind: type, content: Any) -> LastAnswers:  # noqa: ARG001
    answers = LastAnswers()
    for answer in msgspec.convert(content, list[Answered]):
        answers.add(answer)
    return answers


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
