"""The tasks of a run over its attempts: each has a `tasks.jsonl`, which goes on where that of the one before ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lemix_hpc.records.attempts import Attempt
from lemix_hpc.records.parts import Reach
from lemix_hpc.records.schema import TASKS, TaskRecord, TrainedTask
from lemix_hpc.records.training_fold import counts


@dataclass(frozen=True, slots=True)
class TaskFile:
    """A `tasks.jsonl` and what counts of it: the lines up to `reach`, and training up to these `versions` of each node's
    weights; None: all."""

    path: Path
    reach: Reach | None = None
    versions: Mapping[int, int] | None = None

    def has(self, task: TaskRecord) -> bool:
        """Whether a task of these lines counts. Training behind the weights that a later attempt began with is done again."""
        return not isinstance(task, TrainedTask) or self.versions is None or counts(task.node, task.step, self.versions)


def chain(line: Sequence[Attempt]) -> list[TaskFile]:
    """The files of a lineage, in order. Raises UserError if it cannot be known what counts of them."""
    files: list[TaskFile] = []
    reach: Reach | None = None
    versions: dict[int, int] | None = None
    for attempt in reversed(line):
        files.append(TaskFile(attempt.path / TASKS, reach, versions))
        start = attempt.started
        assert start is not None, "only attempts that started are in a lineage"
        if start.tasks is None:
            break  # It is the first one.
        reach, versions = start.tasks, _older(start.versions, versions)
    # Of an attempt that got nowhere there may be no file.
    return [file for file in reversed(files) if file.reach is None or file.reach > Reach()]


def _older(these: Mapping[int, int], others: Mapping[int, int] | None) -> dict[int, int]:
    """The older version of each node."""
    if others is None:
        return dict(these)
    return {node: min(version, others[node]) for node, version in these.items() if node in others}
