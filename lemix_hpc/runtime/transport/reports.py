"""What is told of work: by each stage of every piece, by the leader of what all of its stages have done."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from lemix_hpc.policy.latency import Shape
from lemix_hpc.records.schema import SpanKind


class WorkSpan(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """One stretch of work on a stage. `complete`: the pass ends with it. `tasks` share the stretch (a batch).

    `shape`: what the pass costs by, None for weight updates. `worked`: seconds of the pass so far, all its stretches.
    `partial`: those of the tasks whose prompts go on in another pass.
    """

    node: int
    stage: int
    kind: SpanKind
    tasks: list[int]
    start: float
    end: float
    version: int
    batch: int
    complete: bool
    shape: Shape | None = None
    worked: float = 0.0
    partial: list[int] = []


class SpanReport(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Stage to leader: what ran. Leader to scheduler: what of that is not for a `NodeReport`."""

    spans: list[WorkSpan]


class BatchRan(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A batch is through all stages. `starts`, `ends` and seconds `worked` have an entry for each; the rest is as in
    `WorkSpan`."""

    batch: int
    tasks: list[int]
    partial: list[int]
    version: int
    shape: Shape
    starts: list[float]
    ends: list[float]
    worked: list[float]


class Passed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A request has left a stage for good: from the start of its first pass there to the end of its last one [s]."""

    stage: int
    task: int
    start: float
    end: float


class AnswerDone(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A request that generates several tokens has left all stages: the same of each."""

    task: int
    starts: list[float]
    ends: list[float]


class NodeReport(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Leader to scheduler: serving on its stages, in order."""

    node: int
    work: list[BatchRan | Passed | AnswerDone]

    def spans(self) -> Iterator[WorkSpan]:
        """The work of all its batches."""
        for ran in self.work:
            if isinstance(ran, BatchRan):
                for stage, (start, end, worked) in enumerate(zip(ran.starts, ran.ends, ran.worked, strict=True)):
                    yield WorkSpan(
                        self.node,
                        stage,
                        "serve",
                        ran.tasks,
                        start,
                        end,
                        ran.version,
                        ran.batch,
                        complete=True,
                        shape=ran.shape,
                        worked=worked,
                        partial=ran.partial,
                    )
