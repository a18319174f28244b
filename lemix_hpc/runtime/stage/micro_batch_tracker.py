"""Where the micro-batches of each training group stand on one stage."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from lemix_hpc.engines.protocol import MicroBatch, Payload
from lemix_hpc.policy.execution_rules import forward_limit


@dataclass(slots=True)
class _Count:
    size: int
    forwards: int = 0
    backwards: int = 0


@dataclass(frozen=True, slots=True)
class Gradient:
    """The gradient of a micro-batch's output, None on the last stage, whose output is the loss. `since`: here since [s]."""

    micro_batch: MicroBatch
    grad: Payload | None
    since: float


class MicroBatchTracker:
    """Which forwards and backwards may run on a stage, and which groups are complete."""

    def __init__(self, stage: int, in_flight: int, *, gpipe: bool, flush: bool) -> None:
        """`in_flight`: of a node; `flush`: a group begins only when the one before is closed."""
        self._stage = stage
        self._in_flight = in_flight
        self._gpipe = gpipe
        self._flush = flush
        self._counts: dict[int, _Count] = {}
        self._between: dict[int, MicroBatch] = {}
        self._gradients: deque[Gradient] = deque()

    def may_forward(self, micro_batch: MicroBatch) -> bool:
        """Whether another micro-batch may go between forward and backward here."""
        if self._flush and self._counts and micro_batch.group not in self._counts:
            return False
        size = micro_batch.group_size
        return len(self._between) < forward_limit(self._stage, self._in_flight, size, self._gpipe)

    def started(self, micro_batch: MicroBatch) -> None:
        self._between[micro_batch.id] = micro_batch
        self._counts.setdefault(micro_batch.group, _Count(micro_batch.group_size))

    def forward_done(self, micro_batch: MicroBatch) -> None:
        self._counts[micro_batch.group].forwards += 1

    def gradient_arrived(self, micro_batch: int, grad: Payload | None, now: float) -> None:
        self._gradients.append(Gradient(self._between[micro_batch], grad, now))

    @property
    def next_backward(self) -> int | None:
        """The micro-batch whose backward comes next, if its gradient is there."""
        return self._gradients[0].micro_batch.id if self._gradients else None

    @property
    def backward_since(self) -> float:
        """Since when the next backward has its gradient [s]; inf without one, or while GPipe has forwards of its group left."""
        if not self._gradients:
            return math.inf
        gradient = self._gradients[0]
        count = self._counts[gradient.micro_batch.group]
        return gradient.since if not self._gpipe or count.forwards == count.size else math.inf

    def take_gradient(self) -> Gradient:
        return self._gradients.popleft()

    def backward_done(self, micro_batch: MicroBatch) -> None:
        del self._between[micro_batch.id]
        self._counts[micro_batch.group].backwards += 1

    def complete(self, group: int) -> bool:
        """Whether every backward of a group has run here."""
        count = self._counts.get(group)
        return count is not None and count.backwards == count.size

    def close(self, group: int) -> None:
        del self._counts[group]

    @property
    def idle(self) -> bool:
        """Whether no group is open here."""
        return not self._counts
