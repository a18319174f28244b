"""The passes of one stage, run by themselves: what its neighbours would send is made up."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Callable

from lemix_hpc.engines.meter import DeviceMemoryError, Meter, finish
from lemix_hpc.engines.protocol import GroupGradient, MicroBatch, Payload, ServeBatch, ServeSequence, StageEngine
from lemix_hpc.profiling.grid import GridPoint
from lemix_hpc.runtime.transport.messages import Measured

ENOUGH_S = 0.05
"""Short passes are repeated until so much time was measured ..."""
MOST_REPEATS = 10
"""... but at most so many times as often as long ones."""


class StagePasses:
    """Measures passes of one stage. `generate`: prompts are prefilled and not scored."""

    def __init__(
        self,
        engine: StageEngine,
        meter: Meter,
        *,
        first: bool,
        last: bool,
        vocabulary: int,
        generate: bool,
        warm_up: int,
        repeats: int,
        pause_s: float = 0.0,
    ) -> None:
        self._engine = engine
        self._meter = meter
        self._first = first
        self._last = last
        self._vocabulary = vocabulary
        self._generate = generate
        self._warm_up = warm_up
        self._repeats = repeats
        self._pause_s = pause_s
        self._number = 0

    def measure(self, point: GridPoint) -> Measured:
        """Seconds of each repeat, and the peak memory over all of them. A backward also gives those of optimizer steps."""
        self._meter.reset_peak()
        requests = range(point.batch)
        try:
            with self._meter.bounded():
                if point.kind == "backward":
                    seconds = self._repeat(lambda: self._train(point))
                else:
                    if point.context:
                        self._fill(point)
                    seconds = self._repeat(lambda: {point.kind: self._serve(point)})
                return Measured(seconds, self._meter.peak())
        except DeviceMemoryError:
            return Measured({}, fits=False)
        finally:
            self._engine.forget(requests)

    def _repeat(self, once: Callable[[], dict[str, float]]) -> dict[str, list[float]]:
        for _ in range(self._warm_up):
            once()
        seconds: dict[str, list[float]] = {}
        count, until = 0, time.monotonic() + ENOUGH_S
        while count < self._repeats or (count < MOST_REPEATS * self._repeats and time.monotonic() < until):
            time.sleep(self._pause_s)
            for kind, value in once().items():
                seconds.setdefault(kind, []).append(value)
            count += 1
        return seconds

    def _serve(self, point: GridPoint) -> float:
        entry = self._entry(1, point.batch * point.length)
        generate = self._generate or point.kind == "decode"
        batch = self._batch(range(point.batch), point.length, point.context, generate=generate)
        return self._meter.time(self._engine.serve(batch, entry))[1]

    def _fill(self, point: GridPoint) -> None:
        """Prefill what a decode step finds cached, one request at a time: together they may be too long for a pass."""
        for request in range(point.batch):
            batch = self._batch(range(request, request + 1), point.context, 0, generate=True)
            finish(self._engine.serve(batch, self._entry(1, point.context)))

    def _batch(self, requests: range, length: int, cached: int, *, generate: bool) -> ServeBatch:
        tokens = self._tokens(length)
        return ServeBatch(0, [ServeSequence(request, length, cached, generate, tokens) for request in requests])

    def _train(self, point: GridPoint) -> dict[str, float]:
        """A micro-batch that makes a group of its own, so that its gradient is gone in the end."""
        number = self._number = self._number + 1
        tokens = array("i", self._tokens(point.batch * point.length)).tobytes()
        micro_batch = MicroBatch(number, number, 0, 1, point.batch, point.length, tokens, tokens)
        # All that is made up comes first: were memory to end in between, the engine would keep a pass or a gradient.
        entry = self._entry(point.batch, point.length)
        grad = None if self._last else self._engine.sample(point.batch, point.length)
        tied = None if self._last else self._engine.sample_tied()
        finish(self._engine.forward(micro_batch, entry))
        backward = self._meter.time(self._engine.backward(number, grad))[1]
        return {"backward": backward, "step": self._step(number, tied)}

    def _step(self, group: int, tied: Payload | None) -> float:
        """All parts of an optimizer step by a group: its gradient is sealed, and the step prepared and published."""
        sealing = self._engine.seal(group, tied)
        sealed, seconds = (sealing, 0.0) if isinstance(sealing, GroupGradient) else self._meter.time(sealing)
        preparation = self._engine.prepare(group, math.sqrt(sealed.square_norm), sealed.tied)
        if preparation is not None:
            seconds += self._meter.time(preparation)[1]
        return seconds + self._meter.time(self._engine.publish(group))[1]

    def _entry(self, rows: int, length: int) -> Payload | None:
        return None if self._first else self._engine.sample(rows, length)

    def _tokens(self, count: int) -> list[int]:
        return [7919 * position % self._vocabulary for position in range(count)]
