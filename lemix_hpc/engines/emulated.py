"""Stages whose time is predicted and slept, not computed: the whole runtime at its real size on any machine."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.protocol import MicroBatch, Payload, SequenceResult, ServeBatch, Transfer, Work
from lemix_hpc.engines.weightless import NOTHING, WeightlessStage
from lemix_hpc.policy.latency import LatencyModel, Shape
from lemix_hpc.profiling.hardware import Hardware, load_hardware

TIMER_SLACK = Path("/proc/self/timerslack_ns")


def build_stage(recipe: Recipe, *, node: int, stage: int, device: str, meeting: Path | None) -> EmulatedStage:  # noqa: ARG001
    """Stage `stage` of node `node`, as fast as the coefficient file of that node's kind says.

    Raises UserError for a file that cannot be read or is for another number of stages.
    """
    _sleep_precisely()
    return make_stage(recipe, load_hardware(recipe), node, stage)


def make_stage(
    recipe: Recipe,
    hardware: Hardware,
    node: int,
    stage: int,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> EmulatedStage:
    """As `build_stage`, on any clock."""
    stages, kind, rate = recipe.nodes.stages, hardware.kinds[node], recipe.policy.memory.offload_gb_per_s
    file, moving = hardware.real[kind], 0.0
    held = file.memory(stages)
    if held is not None and rate is not None:
        kept, _ = held[stage].in_training(recipe.recompute_on(stage), file.layers_of(stages)[stage])
        moving = math.ceil(kept) / (1e9 * rate)
    return EmulatedStage(
        hardware.latencies(stages)[kind],
        stage,
        hardware.pieces(stages),
        recomputes=stage < recipe.recomputing,
        moving_token=moving,
        clock=clock,
        sleep=sleep,
    )


def _sleep_precisely() -> None:
    """Linux lets a process sleep up to 50 us longer than it asked for, unless told not to: that is 2 % of a decode pass."""
    with contextlib.suppress(OSError):  # some containers, and kernels before 4.6, forbid it
        TIMER_SLACK.write_text("1")


class EmulatedStage(WeightlessStage):
    """One emulated device. `layers` is in how many pieces a training pass is cut; it can rest between two of them. A backward
    that `recomputes` its forward has twice as many. `moving_token`: seconds to move the activations of a token to the host or
    back, over a link that takes one thing after the other.

    Within a pass the device is never starved: the next layer starts when the last one ended, as queued kernels do, however
    long the loop took between two calls. A pass that rested for other work goes on when it is called again.
    """

    def __init__(
        self,
        latency: LatencyModel,
        stage: int,
        layers: int,
        *,
        recomputes: bool = False,
        moving_token: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._forward = latency.forward[stage]
        self._backward = latency.backward[stage]
        self._last = stage == latency.stages - 1
        self._first = stage == 0
        self._layers = layers
        self._backward_pieces = 2 * layers if recomputes else layers
        self._clock = clock
        self._sleep = sleep
        self._shapes: dict[int, Shape] = {}
        self._moving_token = moving_token
        self._link_free = -math.inf
        self._free = 0.0
        self._running: object = None

    def serve(
        self,
        batch: ServeBatch,
        hidden: Payload | None,  # noqa: ARG002
    ) -> Work[Payload | list[SequenceResult] | None]:
        sequences = batch.sequences
        shape = Shape.of([s.length for s in sequences], [s.cached for s in sequences])
        yield from self._occupy(self._forward.seconds(shape), pieces=1)
        if not self._last:
            return NOTHING
        return [SequenceResult(s.request, 0.0, 0, -1 if s.ends else None) for s in sequences]

    def forward(self, micro_batch: MicroBatch, hidden: Payload | None) -> Work[Payload | float]:  # noqa: ARG002
        shape = Shape.of([micro_batch.length] * micro_batch.rows)
        self._shapes[micro_batch.id] = shape
        yield from self._occupy(self._forward.seconds(shape), self._layers)
        return math.nan if self._last else NOTHING

    def backward(self, micro_batch: int, grad: Payload | None) -> Work[Payload | None]:  # noqa: ARG002
        yield from self._occupy(self._backward.seconds(self._shapes.pop(micro_batch)), self._backward_pieces)
        return None if self._first else NOTHING

    def offload(self, micro_batch: int) -> Transfer:
        return self._move(micro_batch)

    def bring_back(self, micro_batch: int) -> Transfer:
        return self._move(micro_batch)

    def _move(self, micro_batch: int) -> Transfer:
        seconds = self._shapes[micro_batch].tokens * self._moving_token
        self._link_free = end = max(self._link_free, self._clock()) + seconds
        return Transfer(lambda: max(0.0, end - self._clock()))

    def _occupy(self, seconds: float, pieces: int) -> Iterator[None]:
        mine = object()
        for piece in range(pieces):
            if piece:
                yield
            now = self._clock()
            start = self._free if self._running is mine else now
            self._free, self._running = start + seconds / pieces, mine
            self._sleep(max(0.0, self._free - now))
