"""The requests of a node that are in no batch, by their class."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Container, Iterator
from dataclasses import dataclass, field

from lemix_hpc.engines.protocol import ServeSequence
from lemix_hpc.policy.classes import waits_as_batch
from lemix_hpc.policy.latency import Shape
from lemix_hpc.policy.memory_rules import spare_time
from lemix_hpc.policy.pacer import Waiting


@dataclass(slots=True)
class NodeRequest:
    """A request on this node. `cached`: tokens whose keys and values the stages keep; `next`: what to compute next, of which
    its batch has taken a `part`. `patient`: of class batch; `expected`: when it is predicted to end [s]; `held`: tokens of its
    cache for which there is memory."""

    task: int
    key: float
    output_wanted: int
    next_length: int
    next_tokens: list[int]
    arrival: float
    patient: bool = False
    part: int = 0
    cached: int = 0
    output: list[int] = field(default_factory=list)
    nll: float = 0.0
    scored: int = 0
    first_token: float | None = None
    versions: tuple[int, int] | None = None
    expected: float = 0.0
    held: int = 0
    prompt: int = field(init=False)
    prompt_tokens: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.prompt, self.prompt_tokens = self.next_length, self.next_tokens

    @property
    def partial(self) -> bool:
        """Whether more of its prompt follows."""
        return self.part < self.next_length

    @property
    def last(self) -> bool:
        """Whether its batch gives the last token of its answer."""
        return len(self.output) + 1 >= self.output_wanted

    @property
    def shape(self) -> Shape:
        """Of what it computes next, as a whole."""
        return Shape.of((self.next_length,), (self.cached,))

    @property
    def produced(self) -> int:
        return len(self.output)

    def sequence(self) -> ServeSequence:
        tokens, generate = self.next_tokens[: self.part], self.output_wanted > 0
        return ServeSequence(self.task, self.part, self.cached, generate, tokens, self.partial)

    def advance(self, next_length: int, next_tokens: list[int]) -> None:
        """Its part is computed; what comes next."""
        self.cached += self.part
        self.next_length, self.next_tokens = next_length, next_tokens

    def start_again(self) -> int:
        """Its cache is lost: prompt and answer so far are computed again. How many tokens."""
        self.cached = 0
        self.next_length = self.prompt + self.produced
        self.next_tokens = self.prompt_tokens and self.prompt_tokens + self.output
        return self.next_length


class Queue:
    """Requests that are `ready` for another token, in the order in which they became so, and behind them those whose prompts
    wait, in the policy's order."""

    def __init__(self) -> None:
        self.ready: deque[NodeRequest] = deque()
        self._waiting: list[tuple[float, int, NodeRequest]] = []  # a heap
        self._shape = Shape(0, 0)

    def __bool__(self) -> bool:
        return bool(self.ready or self._waiting)

    @property
    def waiting(self) -> Waiting:
        """Those whose prompts wait."""
        return Waiting(self._waiting[0][-1] if self._waiting else None, self._shape)

    def __iter__(self) -> Iterator[NodeRequest]:
        """Those whose prompts wait, in any order."""
        return (request for *_, request in self._waiting)

    @property
    def first(self) -> NodeRequest | None:
        """The request that goes into the next batch first."""
        if self.ready:
            return self.ready[0]
        return self._waiting[0][-1] if self._waiting else None

    def take(self) -> NodeRequest:
        if self.ready:
            return self.ready.popleft()
        request = heapq.heappop(self._waiting)[-1]
        self._shape -= request.shape
        return request

    def wait(self, request: NodeRequest) -> None:
        """It must stay as it is until it is taken."""
        heapq.heappush(self._waiting, (request.key, request.task, request))
        self._shape += request.shape

    def withdraw(self, tasks: Container[int]) -> list[int]:
        """Let go of those of these tasks that have not begun."""
        gone = [r for _, task, r in self._waiting if task in tasks and not r.cached + r.produced]
        left = {request.task for request in gone}
        self._waiting = [waiting for waiting in self._waiting if waiting[1] not in left]
        heapq.heapify(self._waiting)
        for request in gone:
            self._shape -= request.shape
        return [request.task for request in gone]


class RequestQueues:
    """Interactive requests, and batch requests behind them until they are promoted."""

    def __init__(self) -> None:
        self.interactive = Queue()
        self.batch = Queue()
        self._promotes = math.inf

    @property
    def promotes(self) -> float:
        """When to call `promote`, at the latest [s]."""
        return self._promotes

    def first(self, *, alone: bool) -> NodeRequest | None:
        """The request that goes into the next batch first; `alone`: of batch requests."""
        return self._of_first(alone=alone).first

    def take(self, *, alone: bool) -> NodeRequest:
        return self._of_first(alone=alone).take()

    def _of_first(self, *, alone: bool) -> Queue:
        return self.batch if alone or not self.interactive else self.interactive

    def wait(self, request: NodeRequest, now: float) -> None:
        """A request is to have its prompt computed, or the rest of it."""
        self._queue_of(request, now).wait(request)

    def go_on(self, request: NodeRequest, now: float) -> None:
        """A request is to have its next token."""
        self._queue_of(request, now).ready.append(request)

    def _queue_of(self, request: NodeRequest, now: float) -> Queue:
        if not waits_as_batch(request.patient, request.key, now):
            return self.interactive
        self._promotes = min(self._promotes, request.key)
        return self.batch

    def most_spare(self, spared: object) -> NodeRequest | None:
        """Of the requests that generate and are in no batch, the one with the most slack, batch requests first."""
        for queue in (self.batch, self.interactive):
            if here := [request for request in queue.ready if request is not spared]:
                return max(here, key=lambda request: spare_time(request.arrival, request.expected))
        return None

    def leave(self, request: NodeRequest) -> None:
        """A request that is ready for its next token is not any more."""
        queue = self.batch if request in self.batch.ready else self.interactive
        queue.ready.remove(request)

    def promote(self, now: float) -> None:
        """Batch requests whose window is nearly over go with the interactive ones from now on, in the order of their windows:
        as if each had been promoted in time, however late this is called."""
        if now < self._promotes:
            return
        before, self.batch, self._promotes = self.batch, Queue(), math.inf
        late: list[NodeRequest] = []
        for request in before.ready:
            if waits_as_batch(request.patient, request.key, now):
                self.go_on(request, now)
            else:
                late.append(request)
        self.interactive.ready.extend(sorted(late, key=lambda request: (request.key, request.task)))
        for request in before:
            self.wait(request, now)

    def withdraw(self, tasks: Container[int]) -> list[int]:
        """Let go of those of these tasks that have not begun."""
        return self.interactive.withdraw(tasks) + self.batch.withdraw(tasks)
