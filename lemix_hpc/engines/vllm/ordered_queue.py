"""Requests that wait, in vLLM's order, and what a step asks of all of them, which is kept up as they come and go.

Whoever looks through vLLM's own queue copies all of it. Here a step costs by what it takes, however many requests wait.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request

from lemix_hpc.policy.latency import Shape

_Entry = tuple[int, float, str, int, Any]
"""Priority, arrival, id, and how many came before, in the order of vLLM's requests; and the request."""


class OrderedQueue(RequestQueue):  # type: ignore[misc]
    """Nothing may come or go while somebody looks through it.

    `shape`: of what those are to compute that stay as they are while they wait. `changing` are the others: they have run, and
    a token may still come for them, so whoever asks looks at each of them.
    """

    def __init__(self) -> None:
        self.shape = Shape(0, 0)
        self._heap: list[_Entry] = []  # also of what was removed, but never at its top
        self._entries: dict[str, _Entry] = {}
        self._changing: dict[str, Request] = {}
        self._shapes: dict[str, Shape] = {}
        self._came = 0

    @property
    def changing(self) -> Collection[Request]:
        """Those that may become longer while they wait, in any order."""
        return self._changing.values()

    def add_request(self, request: Request) -> None:
        name = request.request_id
        self._came += 1
        self._entries[name] = entry = (request.priority, request.arrival_time, name, self._came, request)
        heapq.heappush(self._heap, entry)
        if request.num_computed_tokens or request.num_output_tokens or request.num_in_flight_tokens:
            self._changing[name] = request
        else:
            self._shapes[name] = shape = Shape.of((request.num_tokens,), (0,))
            self.shape += shape

    def pop_request(self) -> Request:
        request = self.peek_request()
        self._let_go(request)
        return request

    def peek_request(self) -> Request:
        if not self._heap:
            raise IndexError("nothing waits")
        return self._heap[0][-1]

    def prepend_request(self, request: Request) -> None:
        """Its priority is its place."""
        self.add_request(request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self.add_request(request)

    def remove_request(self, request: Request) -> None:
        """Raises KeyError for one that does not wait here."""
        self._let_go(request)

    def remove_requests(self, requests: Iterable[Request]) -> None:
        """Those that do not wait here are ignored."""
        for request in requests:
            if request.request_id in self._entries:
                self._let_go(request)

    def __bool__(self) -> bool:
        return bool(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Request]:
        """In order. The first few cost no more with many behind them: a request is reached over those above it in the heap."""
        heap = self._heap
        reached = [(heap[0], 0)] if heap else []
        while reached:
            entry, at = heapq.heappop(reached)
            if self._waits(entry):
                yield entry[-1]
            for below in range(2 * at + 1, min(2 * at + 3, len(heap))):
                heapq.heappush(reached, (heap[below], below))

    def _waits(self, entry: _Entry) -> bool:
        return self._entries.get(entry[2]) is entry

    def _let_go(self, request: Request) -> None:
        name = request.request_id
        del self._entries[name]
        if self._changing.pop(name, None) is None:
            self.shape -= self._shapes.pop(name)
        while self._heap and not self._waits(self._heap[0]):
            heapq.heappop(self._heap)
        if len(self._heap) > 2 * len(self._entries):
            self._heap = list(self._entries.values())
            heapq.heapify(self._heap)
