"""Training micro-batches in groups of one optimizer step, numbered and ready to be sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.protocol import MicroBatch
from lemix_hpc.workload.load import Workload
from lemix_hpc.workload.samples import SampleQueue
from lemix_hpc.workload.tasks import TrainingBatch


@dataclass(frozen=True, slots=True)
class FedGroup:
    """One group: its number, and of each micro-batch its id, its content, and the clients' samples in it."""

    number: int
    ids: tuple[str, ...]
    micro_batches: tuple[MicroBatch, ...]
    samples: tuple[tuple[str, ...], ...]


class TrainingFeed:
    """Cuts a stream of micro-batches into groups. `total` None: there is no end but the end of serving.

    What clients send goes first. Without a `stream` there is nothing else, and a group may be smaller.
    """

    def __init__(
        self,
        stream: Iterator[TrainingBatch] | None,
        *,
        per_group: int,
        total: int | None,
        number: Callable[[], int],
        samples: SampleQueue | None = None,
    ) -> None:
        self._stream = stream
        self._samples = samples
        self._per_group = per_group
        self._total = total
        self._number = number
        self._taken = 0
        self._groups = 0

    @property
    def total(self) -> int | None:
        return self._total

    @property
    def lasts_with_serving(self) -> bool:
        """Whether it ends when no more requests come: there is no amount, or clients would have to bring it."""
        return self._total is None or self._stream is None

    @property
    def exhausted(self) -> bool:
        return self._total is not None and self._taken >= self._total

    @property
    def samples_waiting(self) -> int:
        """Samples of clients that have not been handed out."""
        return self._samples.pending if self._samples is not None else 0

    def close(self) -> None:
        """Nothing more will be trained on."""
        if self._samples is not None:
            self._samples.closed = True

    def next_group(self) -> FedGroup | None:
        """The next group, None while there is nothing to train on; the last one of a limited amount may be smaller."""
        left = self._per_group if self._total is None else min(self._per_group, self._total - self._taken)
        batches = list(islice(iter(self._next, None), left))
        if not batches:
            return None
        group, size = self._groups, len(batches)
        self._taken += size
        self._groups += 1
        micro_batches = tuple(
            MicroBatch(self._number(), group, index, size, batch.rows, batch.length, batch.tokens, batch.labels)
            for index, batch in enumerate(batches)
        )
        ids, samples = tuple(batch.id for batch in batches), tuple(batch.samples for batch in batches)
        return FedGroup(group, ids, micro_batches, samples)

    def _next(self) -> TrainingBatch | None:
        batch = self._samples.next() if self._samples is not None else None
        return next(self._stream) if batch is None and self._stream is not None else batch


def amount(requests: int, share: float | None, micro_batches: int | None) -> int | None:
    """How many micro-batches a run trains on: given, or so that they are `share` of all tasks, or without end (None)."""
    return micro_batches if share is None else round(requests * share / (1.0 - share))


def feed_of(
    recipe: Recipe, work: Workload, number: Callable[[], int], samples: SampleQueue | None = None
) -> TrainingFeed | None:
    """What a recipe trains on, None if nothing. `samples`: where those of clients come from."""
    training = recipe.training
    if training is None:
        return None
    total = amount(len(work.requests), training.share, training.micro_batches)
    per_group = training.micro_batches_per_step
    return TrainingFeed(work.batches, per_group=per_group, total=total, number=number, samples=samples)
