"""What our part of a step of vLLM's scheduler costs, by how many requests wait: when it is due, and what it takes.

    python benchmarks/vllm_step.py
    python benchmarks/vllm_step.py --waiting 10 100000 --running 64

Made-up requests: some that run, others that wait, one in ten of class batch. A step asks how long it is held and what it takes,
and takes one prompt; another one comes for it. `kept up`: as in a run, by sums that are kept up. `looked through`: by a queue
like vLLM's own, of which every request is looked at. Microseconds of processor time, the median of the steps.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

from vllm.v1.core.sched.request_queue import PriorityRequestQueue
from vllm.v1.request import Request

from lemix_hpc.engines.vllm.engine_pace import EnginePace
from lemix_hpc.engines.vllm.ordered_queue import OrderedQueue
from lemix_hpc.engines.vllm.priority import priority_of
from lemix_hpc.policy.latency import Shape
from lemix_hpc.profiling.coefficients import CoefficientFile

STAGES = 2
TTFT_S, TPOT_S = 60.0, 0.05
LATER_S = 1e6
TIMES: dict[str, Any] = {
    "schema": 1,
    "form": "affine-quadratic",
    "hardware": "any",
    "model": "any",
    "dtype": "float32",
    "layers": STAGES,
    "per_layer": {"forward": {"a": 1e-3, "b": 1e-5, "c": 0.0}},
    "provenance": {},
}


class WalkedQueue(PriorityRequestQueue):  # type: ignore[misc]
    """vLLM's own, each of whose requests is looked at."""

    shape = Shape(0, 0)

    @property
    def changing(self) -> Collection[Any]:
        return list(self)


class Waiting(SimpleNamespace):
    """A request; ordered as vLLM's are."""

    __lt__ = Request.__lt__


class Engine:
    """A scheduler's queues and its pace."""

    def __init__(self, queue: type[Any], running: int, waiting: int) -> None:
        self._draw = random.Random(1)
        self._came = 0
        self._pace = EnginePace(STAGES)
        self._pace.run_began(time.monotonic())
        file = CoefficientFile.model_validate(TIMES).model_dump_json(by_alias=True, exclude_none=True)
        self._pace.keep_pace(TTFT_S, TPOT_S, file, 0.5)
        self._queues = [queue(), queue()]
        self._running = [self._comes() for _ in range(running)]
        for request in self._running:
            request.num_computed_tokens = request.num_tokens - 1
        for _ in range(waiting):
            self._waits()

    def _comes(self, *, batch: bool = False) -> Waiting:
        self._came += 1
        request = Waiting(
            request_id=f"{self._came}",
            arrival_time=time.time(),
            num_tokens=self._draw.randint(10, 1000),
            num_computed_tokens=0,
            num_output_tokens=0,
            num_in_flight_tokens=0,
            max_tokens=100,
            priority=priority_of(LATER_S * self._draw.random() if batch else self._draw.random(), patient=batch),
        )
        if batch:
            request.priority += int(1e3 * LATER_S)
        self._pace.arrived(request)
        return request

    def _waits(self) -> None:
        batch = self._came % 10 == 0
        self._queues[batch].add_request(self._comes(batch=batch))

    def step(self) -> float:
        """Seconds of it."""
        start = time.thread_time()
        interactive, batch = self._queues
        self._pace.until_due(self._running, [], interactive, batch)
        self._pace.plan(self._running, [], interactive, batch, 2048, cuts=True)
        taken = self._queues[0].pop_request()
        seconds = time.thread_time() - start
        self._pace.forget(taken.request_id)
        self._waits()
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiting", type=int, nargs="+", default=[10, 1000, 10_000])
    parser.add_argument("--running", type=int, default=32)
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()
    print(f"{args.running} requests run; microseconds of a step\n{'waiting':>8} {'looked through':>16} {'kept up':>10}")
    for waiting in args.waiting:
        engines = [Engine(queue, args.running, waiting) for queue in (WalkedQueue, OrderedQueue)]
        steps = [statistics.median(engine.step() for _ in range(args.steps)) for engine in engines]
        print(f"{waiting:8} {1e6 * steps[0]:16.0f} {1e6 * steps[1]:10.0f}")


if __name__ == "__main__":
    main()
