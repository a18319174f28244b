"""Two coefficient files side by side: what each predicts for the same passes of the whole model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lemix_hpc.policy.latency import LatencyModel, Shape
from lemix_hpc.profiling.coefficients import CoefficientFile

BATCHES = (1, 4, 16)
LENGTHS = (16, 64, 256, 1024, 4096)
CONTEXTS = (128, 2048)
Kind = Literal["prefill", "decode", "backward"]


@dataclass(frozen=True, slots=True)
class Compared:
    """One pass through all stages: `length` new tokens per sequence, on top of `context` cached ones."""

    kind: Kind
    batch: int
    length: int
    context: int
    first_s: float
    second_s: float

    @property
    def change(self) -> float:
        """How much longer the second file says it takes, relative to the first."""
        return self.second_s / self.first_s - 1.0 if self.first_s > 0.0 else float("inf")


def compare(first: CoefficientFile, second: CoefficientFile) -> list[Compared]:
    """Predictions of both over a grid of passes, as far as both were measured that long."""
    models = _whole(first), _whole(second)
    return [
        Compared(kind, batch, length, context, *(_seconds(m, kind, batch, length, context) for m in models))
        for kind, batch, length, context in _grid()
        if all(model.covers(length + context) for model in models)
    ]


def _grid() -> Iterator[tuple[Kind, int, int, int]]:
    prefills = [(batch, length) for batch in BATCHES for length in LENGTHS]
    yield from (("prefill", batch, length, 0) for batch, length in prefills)
    yield from (("decode", batch, 1, context) for batch in BATCHES for context in CONTEXTS)
    yield from (("backward", batch, length, 0) for batch, length in prefills)


def _whole(file: CoefficientFile) -> LatencyModel:
    return file.latency(len(file.stages) if file.stages else 1)


def _seconds(model: LatencyModel, kind: Kind, batch: int, length: int, context: int) -> float:
    shape = Shape.of((length,) * batch, (context,) * batch)
    times: Sequence[float] = model.backward_times(shape) if kind == "backward" else model.forward_times(shape)
    return sum(times)
