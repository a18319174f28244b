"""What an attempt goes on from: the journals of those before it, folded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from lemix_hpc.records import snapshot
from lemix_hpc.records.attempts import Attempt, lineage
from lemix_hpc.records.fold import Fold
from lemix_hpc.records.journal import Accepted, Answered, Changed, GroupCut, read_journal
from lemix_hpc.records.schema import ServedTask, TrainedTask


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What counts of the attempts so far.

    `journal_bytes`: of the last of them. `served`, `trained`: tasks with their outcomes, in order. `answers`: that clients were
    given last. `waiting`: requests that came and have no outcome, by number; `poison`: those of them that are not to be tried
    again. `next_number`: of tasks. `cuts`: groups of training in order; `places`: the node that each was trained on last;
    `done`: those that are in the weights that training goes on from. `steps` made these (`skipped` of them changed
    nothing), and `versions` are those of each node's weights. `clock`: where the time of the run goes on [s]. `changes`: of
    the recipe, by users. `damage`: what could not be read, for people. `elsewhere`: the checkpoint of another run that the
    weights are from.
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
    skipped: int = 0
    versions: dict[int, int] = field(default_factory=dict)
    clock: float = 0.0
    changes: list[Changed] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    elsewhere: Path | None = None


NOTHING = Inheritance()
"""Of the first attempt."""


def inherit(run_dir: Path, versions: Mapping[int, int] | None, successor: Attempt | None = None) -> Inheritance:
    """Fold the journals of a run's attempts. `versions`: of each node's weights that training goes on from; 0 without. None:
    there are no weights, and every step counts.

    Training that came later than these does not count: it is done again. `successor`: an attempt that goes on from here; it
    keeps a snapshot of what was folded, so that the next one need not read the journals before it. Raises OSError if a journal
    cannot be read.
    """
    line = lineage(run_dir)
    if not line:
        return NOTHING
    fold, problems, length = _fold(line)
    if successor is not None:
        snapshot.keep(successor, fold, line, length)
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
        poison=fold.poison,
        next_number=fold.next_number,
        cuts=[fold.cuts[group] for group in sorted(fold.cuts)],
        places=fold.places,
        done=frozenset(group for step in fold.steps for group in step.groups),
        steps=len(fold.steps),
        skipped=sum(step.skipped for step in fold.steps),
        versions=dict(versions),
        clock=fold.clock,
        changes=fold.changes,
        damage=[*fold.damage, *problems],
    )


def _fold(line: Sequence[Attempt]) -> tuple[Fold, list[str], int]:
    """What a lineage comes to, from its newest whole snapshot on; what is wrong with newer ones; bytes of the last journal."""
    fold, first, problems = snapshot.newest(line)
    length = 0
    for attempt, successor in pairwise([*line[first:], None]):
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
    return fold, problems, length
