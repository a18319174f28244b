"""When requests come: at their own times, or some time after the answer to the one before."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

from lemix_hpc.workload.tasks import Request


class Arrivals:
    """Requests that are still to come. `left` of them have not yet."""

    def __init__(self, requests: Iterable[Request]) -> None:
        numbered = list(enumerate(requests))
        self._due = [(request.arrival, number, request) for number, request in numbered if request.after is None]
        heapq.heapify(self._due)
        self._after = {request.after: (number, request) for number, request in numbered if request.after is not None}
        self.left = len(numbered)
        self.closed = False

    @property
    def over(self) -> bool:
        """Nothing comes any more."""
        return self.closed or self.left == 0

    def close(self) -> None:
        """Let nothing in any more; what has not come is left to the next attempt."""
        self.closed = True
        self._due.clear()
        self._after.clear()

    @property
    def next(self) -> float:
        """When the next request comes, as far as is known [s]; inf if none does."""
        return self._due[0][0] if self._due else math.inf

    def until(self, now: float) -> Iterator[Request]:
        """Requests that have come by now, in order, with their real arrival."""
        while self._due and self._due[0][0] <= now:
            arrival, _, request = heapq.heappop(self._due)
            self.left -= 1
            yield replace(request, arrival=arrival)

    def answered(self, request: str, now: float) -> None:
        """A request was answered: its next turn comes when its author has thought."""
        number, turn = self._after.pop(request, (0, None))
        if turn is not None:
            heapq.heappush(self._due, (now + turn.think_s, number, turn))

    def turned_away(self, request: str, now: float) -> None:
        """A request was not served: its next turn comes by itself, and no earlier than now."""
        number, turn = self._after.pop(request, (0, None))
        if turn is not None:
            heapq.heappush(self._due, (max(now, turn.arrival), number, turn))
