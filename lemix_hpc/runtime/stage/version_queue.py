"""What waits in front of a stage: forwards in sections, divided by the weight updates that came between them.

The channel from the stage before is ordered, and so are its sections: everything in front of an update must have run when
the update is applied, everything behind it must not have started. Within a section serving may overtake training, and
serving runs by its key.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

ServeItem = TypeVar("ServeItem")
TrainItem = TypeVar("TrainItem")
UpdateItem = TypeVar("UpdateItem")


@dataclass(slots=True)
class _Section(Generic[ServeItem, TrainItem, UpdateItem]):
    serve: list[tuple[float, int, ServeItem]] = field(default_factory=list)  # a heap
    train: deque[TrainItem] = field(default_factory=deque)
    update: UpdateItem | None = None


class VersionQueue(Generic[ServeItem, TrainItem, UpdateItem]):
    """Only the first section is open for work; its update ends it."""

    def __init__(self) -> None:
        self._sections: deque[_Section[ServeItem, TrainItem, UpdateItem]] = deque([_Section()])
        self._came = 0

    def add_serve(self, item: ServeItem, key: float) -> None:
        """Among equal keys the first to come is the first to go."""
        self._came += 1
        heapq.heappush(self._sections[-1].serve, (key, self._came, item))

    def add_train(self, item: TrainItem) -> None:
        self._sections[-1].train.append(item)

    def add_update(self, update: UpdateItem, *, before_training: bool = False) -> None:
        """`before_training`: training that waits does not have to come before the update, and comes after it."""
        last, after = self._sections[-1], _Section[ServeItem, TrainItem, UpdateItem]()
        if before_training:
            last.train, after.train = after.train, last.train
        last.update = update
        self._sections.append(after)

    @property
    def next_serve(self) -> ServeItem | None:
        """The serving to run next, None when none is open."""
        serve = self._sections[0].serve
        return serve[0][-1] if serve else None

    @property
    def next_train(self) -> TrainItem | None:
        """The training forward to run next, None when none is open."""
        train = self._sections[0].train
        return train[0] if train else None

    @property
    def update(self) -> UpdateItem | None:
        """The update to apply now: nothing in front of it is left to start."""
        first = self._sections[0]
        return None if first.serve or first.train else first.update

    def take_serve(self) -> ServeItem:
        return heapq.heappop(self._sections[0].serve)[-1]

    def take_train(self) -> TrainItem:
        return self._sections[0].train.popleft()

    def pass_update(self) -> None:
        """The update was applied; open the next section."""
        self._sections.popleft()

    def __len__(self) -> int:
        return sum(len(e.serve) + len(e.train) + (e.update is not None) for e in self._sections)
