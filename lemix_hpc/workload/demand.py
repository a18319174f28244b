"""What the requests of a run ask for, all together: counts of lengths, which need no more memory for more requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from lemix_hpc.policy.latency import LatencyModel
from lemix_hpc.workload.tasks import Request

_BLOCK = 1024


@dataclass
class Lengths:
    """Of requests in tokens. `prompts`, `outputs`: how many have each length. `passes`: decode passes of all of them, one for
    each token behind the first, which read `read` cached tokens. `halves`: the sum over requests of twice the cached tokens
    that their middle pass reads, or would."""

    prompts: Counter[int] = field(default_factory=Counter)
    outputs: Counter[int] = field(default_factory=Counter)
    passes: int = 0
    read: int = 0
    halves: int = 0

    @property
    def count(self) -> int:
        return self.prompts.total()

    def add(self, prompts: list[int], outputs: list[int]) -> None:
        self.prompts.update(prompts)
        self.outputs.update(outputs)
        prompt, passes = np.array(prompts, np.int64), np.maximum(np.array(outputs, np.int64) - 1, 0)
        self.passes += int(passes.sum())
        # The i-th pass reads the prompt and i - 1 tokens.
        self.read += int((passes * prompt + passes * (passes - 1) // 2).sum())
        self.halves += int((2 * prompt + np.maximum(passes - 1, 0)).sum())

    @property
    def mean_read(self) -> float:
        """Cached tokens that a decode pass reads, over all passes; 0 without any."""
        return self.read / self.passes if self.passes else 0.0

    def output_at(self, place: int) -> int:
        """The output at a place from 0, if requests were sorted by it."""
        for output in sorted(self.outputs):
            place -= self.outputs[output]
            if place < 0:
                return output
        raise IndexError(f"there are {self.count} requests")


@dataclass
class Demand:
    """`interactive` and `batch`: requests of each class. `wholes`: how many have each length of prompt and output together.
    `last_arrival` [s]; `calls`: whether any is a call of the OpenAI API."""

    interactive: Lengths = field(default_factory=Lengths)
    batch: Lengths = field(default_factory=Lengths)
    wholes: Counter[int] = field(default_factory=Counter)
    last_arrival: float = 0.0
    calls: bool = False

    @staticmethod
    def of(requests: Iterable[Request]) -> Demand:
        demand = Demand()
        for block in _blocks(requests):
            demand._add(block)
        return demand

    @property
    def count(self) -> int:
        return self.wholes.total()

    @property
    def limited(self) -> Lengths:
        """Of those that limits are for: the interactive ones, or all if there are none."""
        return self.interactive if self.interactive.prompts else self.batch

    @property
    def generates(self) -> bool:
        """Whether any asks for output."""
        return any(output > 0 for lengths in (self.interactive, self.batch) for output in lengths.outputs)

    @property
    def longest(self) -> int:
        """The most tokens of a prompt and its output together; 0 without requests."""
        return max(self.wholes, default=0)

    def outside(self, latencies: Iterable[LatencyModel]) -> int:
        """How many have a length that not all of these models were fitted on."""
        models = tuple(latencies)
        return sum(count for length, count in self.wholes.items() if not all(model.covers(length) for model in models))

    def _add(self, requests: list[Request]) -> None:
        for lengths, service in ((self.interactive, "interactive"), (self.batch, "batch")):
            if chosen := [request for request in requests if request.service == service]:
                lengths.add([r.prompt_tokens for r in chosen], [r.output_tokens for r in chosen])
        self.wholes.update(request.prompt_tokens + request.output_tokens for request in requests)
        self.last_arrival = max(self.last_arrival, *(request.arrival for request in requests))
        self.calls = self.calls or any(request.call is not None for request in requests)


def _blocks(requests: Iterable[Request]) -> Iterator[list[Request]]:
    requests = iter(requests)
    while block := list(islice(requests, _BLOCK)):
        yield block
