"""Predicted stage times: the affine-quadratic form t = a + b sum(l) + c sum(l^2) + d sum(kv)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """What a batch costs by: sums over its sequences of new tokens, their squares, and cached tokens read."""

    tokens: int
    squares: int
    cached: int = 0

    @staticmethod
    def of(lengths: Sequence[int], cached: Sequence[int] = ()) -> Shape:
        """The shape of sequences with these numbers of new tokens, on top of `cached` ones."""
        return Shape(sum(lengths), sum(length * length for length in lengths), sum(cached))


@dataclass(frozen=True, slots=True)
class Affine:
    """Seconds on one stage: a [s], b [s/token], c [s/token^2], d [s/cached token]."""

    a: float
    b: float
    c: float
    d: float = 0.0

    def seconds(self, shape: Shape) -> float:
        return self.a + self.b * shape.tokens + self.c * shape.squares + self.d * shape.cached

    def scaled(self, factor: float) -> Affine:
        return Affine(self.a * factor, self.b * factor, self.c * factor, self.d * factor)


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """Forward and backward times of every stage of a node, and the lengths they were fitted on."""

    forward: tuple[Affine, ...]
    backward: tuple[Affine, ...]
    max_length: int | None = None

    @property
    def stages(self) -> int:
        return len(self.forward)

    def forward_times(self, shape: Shape) -> tuple[float, ...]:
        """Predicted forward seconds on every stage."""
        return tuple(stage.seconds(shape) for stage in self.forward)

    def backward_times(self, shape: Shape) -> tuple[float, ...]:
        """Predicted backward seconds on every stage."""
        return tuple(stage.seconds(shape) for stage in self.backward)

    def request_times(self, prompt: int, output: int) -> tuple[float, ...]:
        """Predicted seconds that a request alone spends on every stage: its prompt, then one pass per further token.

        The i-th of the `output` - 1 decode passes reads prompt + i - 1 cached tokens; their sum is taken in closed form.
        """
        times = self.forward_times(Shape.of((prompt,)))
        passes = max(0, output - 1)
        if passes == 0:
            return times
        read = passes * prompt + passes * (passes - 1) // 2
        decode = (s.a * passes + (s.b + s.c) * passes + s.d * read for s in self.forward)
        return tuple(first + rest for first, rest in zip(times, decode, strict=True))

    def covers(self, length: int) -> bool:
        """Whether a prediction for this length lies within the range that the coefficients were fitted on."""
        return self.max_length is None or length <= self.max_length
