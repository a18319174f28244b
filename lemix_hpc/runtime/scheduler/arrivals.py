"""When requests come: at their own times, or some time after the answer to the one before."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator

from msgspec.structs import replace

from lemix_hpc.workload.tasks import Request


class Arrivals:
    """Requests that are still to come, which are made as they are due: those of `requests` that are `of_interest`, as that
    returns them. `left` of them have not come yet.

    `requests`: in order of arrival; later turns of a conversation are right behind its first.
    """

    def __init__(
        self,
        requests: Iterable[Request],
        left: int,
        of_interest: Callable[[Request], Request | None] = lambda request: request,
    ) -> None:
        self._requests = enumerate(requests)
        self._of_interest = of_interest
        self._due: list[tuple[float, int, Request]] = []
        self._after: dict[str, tuple[int, Request]] = {}
        self.left = left
        self.closed = False
        self._head = next(self._requests, None)
        self._make(-math.inf)

    @property
    def over(self) -> bool:
        """Nothing comes any more."""
        return self.closed or self.left <= 0

    def close(self) -> None:
        """Let nothing in any more; what has not come is left to the next attempt."""
        self.closed = True
        self._head = None
        self._due.clear()
        self._after.clear()

    @property
    def next(self) -> float:
        """When to look for the next request, as far as is known [s]; inf if none comes by itself."""
        made = self._due[0][0] if self._due else math.inf
        return made if self._head is None else min(made, self._head[1].arrival)

    def until(self, now: float) -> Iterator[Request]:
        """Requests that have come by now, in order, with their real arrival."""
        self._make(now)
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

    def _make(self, now: float) -> None:
        """Those that come by themselves until now, each with all of its conversation."""
        while self._head is not None:
            number, made = self._head
            if made.after is None and made.arrival > now:
                return
            request = self._of_interest(made)
            if request is not None and request.after is not None:
                self._after[request.after] = number, request
            elif request is not None:
                heapq.heappush(self._due, (request.arrival, number, request))
            self._head = next(self._requests, None)
