"""Batches of which a stage has been told before their activations come."""

from __future__ import annotations

from collections import deque

from lemix_hpc.engines.protocol import ServeBatch
from lemix_hpc.runtime.stage.work_items import Arrived


class ExpectedBatches:
    """Which batch a stage can prepare: the next one, once that before it has run, since its requests go on from there.

    Batches are numbered from 0, and run in this order on every stage. Word of one may come late: then it is not prepared.
    """

    def __init__(self) -> None:
        self._coming: deque[Arrived[ServeBatch]] = deque()
        self._over = self._begun = self._prepared = -1
        self._worked = 0.0

    def told(self, batch: Arrived[ServeBatch]) -> None:
        if batch.message.id > self._begun:
            self._coming.append(batch)

    @property
    def next(self) -> Arrived[ServeBatch] | None:
        """What to prepare now, None if nothing."""
        first = self._coming[0] if self._coming else None
        if first is None or first.message.id != self._over + 1 or first.message.id == self._prepared:
            return None
        return first

    def take(self) -> Arrived[ServeBatch]:
        """The batch to prepare, which is not `next` any more."""
        batch = self._coming[0]
        self._prepared = batch.message.id
        return batch

    def prepared(self, batch: int, seconds: float) -> None:
        """It took so long to prepare the batch."""
        assert batch == self._prepared, "batches are prepared one after the other"
        self._worked = seconds

    def begins(self, batch: int) -> float:
        """The pass of a batch begins; seconds for which it was prepared."""
        self._begun = batch
        while self._coming and self._coming[0].message.id <= batch:
            self._coming.popleft()
        return self._worked if batch == self._prepared else 0.0

    def over(self, batch: int) -> None:
        """The pass of a batch has ended."""
        self._over = batch

    @property
    def idle(self) -> bool:
        """Whether no batch is expected."""
        return not self._coming
