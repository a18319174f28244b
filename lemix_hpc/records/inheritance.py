"""What an attempt goes on from: the journals of those before it, folded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.text_file import BROKEN_JSON
from lemix_hpc.records import fold as folds
from lemix_hpc.records.attempts import Attempt, lineage
from lemix_hpc.records.fold import Fold
from lemix_hpc.records.journal import (
    Accepted,
    Answered,
    Changed,
    Ended,
    GroupCut,
    Trained,
    journal_part,
    journal_parts,
    read_fold,
    read_journal,
)
from lemix_hpc.records.made_by import made_by
from lemix_hpc.records.parts import Reach
from lemix_hpc.records.places import Places
from lemix_hpc.records.schema import ServedTask, TrainedTask
from lemix_hpc.records.tally import Tally
from lemix_hpc.records.training_fold import Behind, counts


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What counts of the attempts so far.

    `journal_part`, `journal_bytes`: where the journal of the last of them ends; `tasks`: how far its `tasks.jsonl` counts.
    `served`, `trained`: tasks with their outcomes that are in none that counts, in order; `tally`, `trained_before` and
    `lost_losses`: of all others. `over`: places of requests of the workload that have an outcome, `turns`: of next turns that
    have not come, and when the request before each finished [s]; `newest`: the last place of one that has come, -1 before any
    has, and its id; `lost`: ids of requests without an answer. `results`: lines of its `results.jsonl` that count. `answers`:
    that clients were given last. `waiting`: requests that came and have no outcome, by number; `poison`: those of them that
    are not to be tried again. `next_number`: of tasks. `cuts`: groups of training in order, but for those `behind` them;
    `places`: the node that each was trained on last; `done`: those that are in the weights that training goes on from.
    `steps` made these (`skipped` of them changed nothing), and `versions` are those of each node's weights. `clock`: where
    the time of the run goes on [s]. `changes`: of the recipe, by users. `damage`: what could not be read, for people.
    `elsewhere`: the checkpoint of another run that the weights are from. `fold`: what the journal of the next attempt begins
    with, once `served` and `trained` are in its `tasks.jsonl`.
    """

    last: Attempt | None = None
    journal_part: int = 0
    journal_bytes: int = 0
    tasks: Reach | None = None
    served: list[ServedTask] = field(default_factory=list)
    trained: list[TrainedTask] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    trained_before: int = 0
    lost_losses: int = 0
    over: Places = field(default_factory=Places)
    turns: dict[int, float] = field(default_factory=dict)
    newest: tuple[int, str] = (-1, "")
    results: int = 0
    lost: list[str] = field(default_factory=list)
    answers: list[Answered] = field(default_factory=list)
    waiting: dict[int, Accepted] = field(default_factory=dict)
    poison: frozenset[int] = frozenset()
    next_number: int = 0
    cuts: list[GroupCut] = field(default_factory=list)
    behind: Behind = field(default_factory=Behind)
    places: dict[int, int] = field(default_factory=dict)
    done: frozenset[int] = frozenset()
    steps: int = 0
    skipped: int = 0
    versions: dict[int, int] = field(default_factory=dict)
    clock: float = 0.0
    changes: list[Changed] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    elsewhere: Path | None = None
    fold: Fold = field(default_factory=Fold)


NOTHING = Inheritance()
"""Of the first attempt."""


def inherit(run_dir: Path, versions: Mapping[int, int] | None) -> Inheritance:
    """Fold the journals of a run's attempts. `versions`: of each node's weights that training goes on from; 0 without. None:
    there are no weights, and every step counts.

    Training that came later than these does not count: it is done again. Raises OSError if a journal cannot be read, UserError
    if it is another version's, too much of it is damaged, or the weights are too old.
    """
    line = lineage(run_dir)
    if not line:
        return NOTHING
    found = _fold(line)
    fold = found.fold
    if versions is None:
        versions = fold.training.versions
    fold.training.cut_back(versions)
    served = [*found.served, *fold.end_answered()]
    trained = _that_count(found.trained, versions)
    trained += fold.end_training()
    training, behind = fold.training, fold.training.behind
    lost_here = sum(told.lost for task in trained if (told := training.told.get(task.id)) is not None)
    return Inheritance(
        last=line[-1],
        journal_part=found.part,
        journal_bytes=found.length,
        tasks=found.reach,
        served=served,
        trained=trained,
        tally=found.tally,
        trained_before=training.trained - len(trained),
        lost_losses=training.lost_losses - lost_here,
        over=fold.over,
        turns=fold.turns,
        newest=fold.newest,
        results=fold.results,
        lost=fold.lost,
        answers=list(fold.answers),
        waiting=fold.waiting,
        poison=fold.poison,
        next_number=fold.next_number,
        cuts=[training.cuts[group] for group in sorted(training.cuts)],
        behind=behind,
        places=training.places,
        done=frozenset(group for step in training.steps for group in step.groups),
        steps=behind.steps + len(training.steps),
        skipped=behind.skipped + sum(step.skipped for step in training.steps),
        versions=dict(versions),
        clock=fold.clock,
        changes=fold.changes,
        damage=fold.damage,
        fold=fold,
    )


class _Part(NamedTuple):
    """Of a journal, up to so many bytes; None: all."""

    number: int
    path: Path
    length: int | None


class _Folded(NamedTuple):
    """`fold` is of all; `served` and `trained`: of those of its records whose lines no `tasks.jsonl` has for certain, the last
    of which counts up to `reach`; `tally` of the others. The last journal ends at `length` of its `part`."""

    fold: Fold
    tally: Tally
    served: list[ServedTask]
    trained: list[TrainedTask]
    reach: Reach
    part: int
    length: int


def _fold(line: Sequence[Attempt]) -> _Folded:
    """What a lineage comes to, from the newest part on whose beginning is whole."""
    first, part, fold = _newest(line)
    served, trained = list[ServedTask](), list[TrainedTask]()
    reach, number, length = fold.reach if first == len(line) - 1 else Reach(), 0, 0
    tally = fold.tally.copy()
    for place, (attempt, successor) in enumerate(pairwise([*line, None])):
        if place < first:
            continue
        start = attempt.started if attempt is not None else None
        assert attempt is not None and start is not None, "only attempts that started are in a lineage"
        if place > first or part is None:
            fold.begin(start)
            trained = _that_count(trained, start.versions)
        following = successor.started if successor is not None else None
        counted = reach if following is None else following.tasks
        number, length = 0, 0
        for each in _parts(attempt, successor):
            number = each.number
            if place == first and part is not None and number < part:
                continue
            content = read_journal(each.path, each.length)
            length = content.length
            for record in content.records:
                fold.add(record)
                if isinstance(record, Ended) and not _told(record.at, counted):
                    served.append(record.task)
                elif isinstance(record, Trained) and not _told(record.at, counted):
                    trained.append(record.task)
                elif isinstance(record, Ended):
                    tally.add(record.task)
            fold.damage += content.damage
        fold.end(attempt)
    return _Folded(fold, tally, served, trained, reach, number, length)


def _told(at: Reach, counted: Reach | None) -> bool:
    """Whether a line is within what counts of its file."""
    return counted is not None and Reach(0, 0) < at <= counted


def _newest(line: Sequence[Attempt]) -> tuple[int, int | None, Fold]:
    """The place in a lineage and the number of the newest part whose beginning is whole, and the fold that it begins with. None
    and an empty fold at the very beginning.

    Raises UserError for one of another version, and where the beginnings of all parts that are left of a journal are damaged.
    """
    for place, (attempt, successor) in reversed(list(enumerate(pairwise([*line, None])))):
        assert attempt is not None, "only the last one has no successor"
        parts = _parts(attempt, successor)
        if parts and parts[0].number == 0:
            raise UserError(
                f"{parts[0].path}: not a journal that this version can go on from: it does not say which requests of the "
                f"workload are over{made_by(parts[0].path)}. `lemix report` still works."
            )
        for part in reversed(parts):
            try:
                content = read_fold(part.path, part.length)
                if content is not None:
                    return place, part.number, folds.decode(content)
            except BROKEN_JSON as error:
                raise UserError(
                    f"{part.path}: not a journal that this version can read: {error}{made_by(part.path)}"
                ) from error
        if parts and parts[0].number > 1:
            raise UserError(
                f"{parts[0].path}: the beginning is damaged, and so is that of each later part. What the run has promised is "
                "no longer known, and it cannot go on. `lemix report` still works."
            )
    return 0, None, Fold()


def _parts(attempt: Attempt, successor: Attempt | None) -> list[_Part]:
    """Of an attempt's journal, as far as it counts."""
    fence = successor.started if successor is not None else None
    parts = (_Part(number, journal_part(attempt.path, number), None) for number in journal_parts(attempt.path))
    if fence is None:
        return list(parts)
    last = fence.journal_part
    return [
        part._replace(length=fence.journal_bytes if part.number == last else None)
        for part in parts
        if part.number <= last
    ]


def _that_count(trained: Sequence[TrainedTask], versions: Mapping[int, int]) -> list[TrainedTask]:
    return [task for task in trained if counts(task.node, task.step, versions)]
