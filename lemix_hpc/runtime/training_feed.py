"""Training micro-batches in groups of one optimizer step, numbered and ready to be sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.protocol import MicroBatch
from lemix_hpc.workload.load import Workload
from lemix_hpc.workload.tasks import TrainingBatch


@dataclass(frozen=True, slots=True)
class FedGroup:
    """One group: its number, and the id and content of each micro-batch."""

    number: int
    ids: tuple[str, ...]
    micro_batches: tuple[MicroBatch, ...]


class TrainingFeed:
    """Cuts a stream of micro-batches into groups. `total` None: there is no end but the end of serving."""

    def __init__(
        self, stream: Iterator[TrainingBatch], *, per_group: int, total: int | None, number: Callable[[], int]
    ) -> None:
        self._stream = stream
        self._per_group = per_group
        self._total = total
        self._number = number
        self._taken = 0
        self._groups = 0

    @property
    def total(self) -> int | None:
        return self._total

    @property
    def exhausted(self) -> bool:
        return self._total is not None and self._taken >= self._total

    def next_group(self) -> FedGroup:
        """The next group; the last one of a limited amount may be smaller."""
        left = self._per_group if self._total is None else min(self._per_group, self._total - self._taken)
        batches = [next(self._stream) for _ in range(left)]
        group = self._groups
        self._taken += left
        self._groups += 1
        micro_batches = tuple(
            MicroBatch(self._number(), group, index, left, batch.rows, batch.length, batch.tokens, batch.labels)
            for index, batch in enumerate(batches)
        )
        return FedGroup(group, tuple(batch.id for batch in batches), micro_batches)


def amount(requests: int, share: float | None, micro_batches: int | None) -> int | None:
    """How many micro-batches a run trains on: given, or so that they are `share` of all tasks, or without end (None)."""
    return micro_batches if share is None else round(requests * share / (1.0 - share))


def feed_of(recipe: Recipe, work: Workload, number: Callable[[], int]) -> TrainingFeed | None:
    """What a recipe trains on, None if nothing."""
    training = recipe.training
    if training is None or work.batches is None:
        return None
    total = amount(len(work.requests), training.share, training.micro_batches)
    return TrainingFeed(work.batches, per_group=training.micro_batches_per_step, total=total, number=number)
