"""What micro-batches keep on a stage between forward and backward: on the device, or on the host while memory is short.

The node's leader keeps the accounts and says what leaves (`lemix_hpc.runtime.leader.memory_gate`); the stage brings back what
its next backward needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from lemix_hpc.engines.protocol import Transfer
from lemix_hpc.runtime.stage.links import StageLinks
from lemix_hpc.runtime.transport import messages as m

Move = Callable[[int], Transfer]
"""Begins to move what a micro-batch keeps."""


class RestingActivations:
    """`to_host`, `to_device`: the engine's. A micro-batch that is nowhere here is on the device, or not between its passes."""

    def __init__(self, links: StageLinks, to_host: Move, to_device: Move) -> None:
        self._links = links
        self._to_host = to_host
        self._to_device = to_device
        self._resting: set[int] = set()
        self._leaving: dict[int, Transfer] = {}
        self._away: set[int] = set()
        self._coming: dict[int, Transfer] = {}
        self._back: int | None = None

    def rests(self, micro_batch: int) -> None:
        """A forward is over."""
        self._resting.add(micro_batch)

    def begins(self, micro_batch: int) -> None:
        """A backward begins: what it needs stays."""
        self._resting.discard(micro_batch)

    def over(self, micro_batch: int) -> None:
        """A backward is over."""
        if self._back == micro_batch:
            self._back = None

    def leave(self, order: m.Offload) -> None:
        """Begin to move to the host; nothing where the backward has begun meanwhile."""
        if order.micro_batch in self._resting:
            self._resting.discard(order.micro_batch)
            self._leaving[order.micro_batch] = self._to_host(order.micro_batch)

    def there(self, micro_batch: int) -> bool:
        """Whether a backward finds what it needs on the device."""
        return not (micro_batch in self._leaving or micro_batch in self._away or micro_batch in self._coming)

    def settle(self, needed: int | None) -> bool:
        """End the ways that are over, and bring back what the next backward needs. Whether anything has changed."""
        changed = False
        for micro_batch in [number for number, transfer in self._leaving.items() if transfer.remaining() <= 0]:
            del self._leaving[micro_batch]
            self._away.add(micro_batch)
            self._tell(micro_batch, back=False)
            changed = True
        # There is room for one at a time.
        if needed is not None and needed in self._away and self._back is None:
            self._back = needed
            self._away.discard(needed)
            self._coming[needed] = self._to_device(needed)
            self._tell(needed, back=True)
            changed = True
        for micro_batch in [number for number, transfer in self._coming.items() if transfer.remaining() <= 0]:
            del self._coming[micro_batch]
            changed = True
        return changed

    @property
    def until_settled(self) -> float:
        """Seconds until the next way is likely to be over; inf without one."""
        ways = (*self._leaving.values(), *self._coming.values())
        return min((transfer.remaining() for transfer in ways), default=math.inf)

    def _tell(self, micro_batch: int, *, back: bool) -> None:
        self._links.to_leader(m.Moved(self._links.place.stage, micro_batch, back))
