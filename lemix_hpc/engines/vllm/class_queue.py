"""The requests that wait in vLLM's scheduler, by their class: what a step may take of them is what it sees."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request

from lemix_hpc.engines.vllm.ordered_queue import OrderedQueue
from lemix_hpc.engines.vllm.priority import is_batch, promoted


class ClassedQueue(RequestQueue):  # type: ignore[misc]
    """Interactive requests, and behind them batch requests, each by priority.

    Counted, looked through and removed are all of them. Whether there is one, and which is the first, is told of those alone
    that the next step is to see: after `show` only interactive ones, or only so many of the others.
    """

    def __init__(self) -> None:
        self.interactive = OrderedQueue()
        self.batch = OrderedQueue()
        self.show()

    def show(self, *, interactive: bool = True, batch: float = math.inf) -> None:
        """What the next step sees: whether interactive requests, and how many batch requests."""
        self._shows_interactive = interactive
        self._shown = batch

    def promote(self, nearly_over: Callable[[Request], bool]) -> None:
        """Batch requests whose window is nearly over go with the interactive ones from now on."""
        while self.batch and nearly_over(self.batch.peek_request()):
            request = self.batch.pop_request()
            request.priority = promoted(request.priority)
            self.interactive.add_request(request)

    def add_request(self, request: Request) -> None:
        (self.batch if is_batch(request.priority) else self.interactive).add_request(request)

    def pop_request(self) -> Request:
        queue = self._first()
        self._shown -= queue is self.batch
        return queue.pop_request()

    def peek_request(self) -> Request:
        return self._first().peek_request()

    def _first(self) -> OrderedQueue:
        if self._shows_interactive and self.interactive:
            return self.interactive
        if self._shown > 0 and self.batch:
            return self.batch
        raise IndexError("nothing to see")

    def prepend_request(self, request: Request) -> None:
        """Its priority is its place."""
        self.add_request(request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self.add_request(request)

    def remove_request(self, request: Request) -> None:
        (self.batch if is_batch(request.priority) else self.interactive).remove_request(request)

    def remove_requests(self, requests: Iterable[Request]) -> None:
        gone = list(requests)
        self.batch.remove_requests(request for request in gone if is_batch(request.priority))
        self.interactive.remove_requests(request for request in gone if not is_batch(request.priority))

    def __bool__(self) -> bool:
        return bool((self._shows_interactive and self.interactive) or (self._shown > 0 and self.batch))

    def __len__(self) -> int:
        return len(self.interactive) + len(self.batch)

    def __iter__(self) -> Iterator[Request]:
        return chain(self.interactive, self.batch)
