"""Predicted stage times: what a batch costs by, and what every stage of a node takes for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self


@dataclass(frozen=True, slots=True)
class Shape:
    """What a batch costs by: sums over its sequences of new tokens, their squares, and cached tokens read. A part of a prompt
    on top of cached ones adds to the squares by how much the square of what is there grows.

    `prefills` is how many of the sequences have more than one new token; the others decode. `cached` may be a mean over
    several passes, and then no whole number.
    """

    tokens: int
    squares: int
    cached: float = 0
    prefills: int = 0

    @staticmethod
    def of(lengths: Sequence[int], cached: Sequence[int] = ()) -> Shape:
        """The shape of sequences with these numbers of new tokens, on top of `cached` ones."""
        squares = sum(length * length for length in lengths)
        squares += sum(2 * new * old for new, old in zip(lengths, cached, strict=False) if new > 1)
        return Shape(sum(lengths), squares, sum(cached), sum(length > 1 for length in lengths))

    def __add__(self, other: Shape) -> Shape:
        """Of the sequences of both together."""
        return Shape(
            self.tokens + other.tokens,
            self.squares + other.squares,
            self.cached + other.cached,
            self.prefills + other.prefills,
        )

    def __sub__(self, other: Shape) -> Shape:
        """Of the sequences without those of `other`, which are among them."""
        return Shape(
            self.tokens - other.tokens,
            self.squares - other.squares,
            self.cached - other.cached,
            self.prefills - other.prefills,
        )


class StageTime(Protocol):
    """Seconds of one pass through one stage: non-negative, and never less when any size of the shape grows.

    A form is a sum of such terms, each with a coefficient of its own, and linear in the cached tokens.
    """

    def __hash__(self) -> int:
        """Equal forms predict equal times."""

    def seconds(self, shape: Shape) -> float:
        """The sum of the terms."""

    def terms(self, shape: Shape) -> tuple[float, ...]:
        """The terms [s], always as many and in the same order."""

    def with_gains(self, gains: Sequence[float]) -> Self:
        """The form whose terms are these ones, each times its gain."""

    def scaled(self, factor: float) -> Self:
        """The form whose every term is `factor` times as long."""

    @property
    def count(self) -> int:
        """How many terms there are."""

    def level(self, tokens: int) -> float:
        """How the batch's tokens cost together, in a unit of the form's own; see `row`."""

    def row(self, gains: Sequence[float]) -> Row:
        """With terms times these gains, the coefficients of 1, level(sum l), sum(l^2), sum(kv) and the prefills [s]."""


Row = tuple[float, float, float, float, float]
"""Five coefficients of a stage time, see `StageTime.row`."""


@dataclass(frozen=True, slots=True)
class Affine:
    """t = a + b sum(l) + c sum(l^2) + d sum(kv): a [s], b [s/token], c [s/token^2], d [s/cached token]."""

    a: float
    b: float
    c: float
    d: float = 0.0

    def seconds(self, shape: Shape) -> float:
        return self.a + self.b * shape.tokens + self.c * shape.squares + self.d * shape.cached

    def terms(self, shape: Shape) -> tuple[float, ...]:
        return self.a, self.b * shape.tokens, self.c * shape.squares, self.d * shape.cached

    def with_gains(self, gains: Sequence[float]) -> Affine:
        a, b, c, d = gains
        return Affine(self.a * a, self.b * b, self.c * c, self.d * d)

    def scaled(self, factor: float) -> Affine:
        return self.with_gains((factor,) * 4)

    @property
    def count(self) -> int:
        return 4

    def level(self, tokens: int) -> float:
        return float(tokens)

    def row(self, gains: Sequence[float]) -> Row:
        a, b, c, d = gains
        return self.a * a, self.b * b, self.c * c, self.d * d, 0.0


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """Forward and backward times of every stage of a node, one form for each stage; `max_length`: the longest sequence [tokens]
    that they were fitted on."""

    forward: tuple[StageTime, ...]
    backward: tuple[StageTime, ...]
    max_length: int | None = None

    @property
    def stages(self) -> int:
        """How many stages a node has."""
        return len(self.forward)

    def forward_times(self, shape: Shape) -> tuple[float, ...]:
        """Predicted forward seconds on every stage."""
        return tuple(stage.seconds(shape) for stage in self.forward)

    def backward_times(self, shape: Shape) -> tuple[float, ...]:
        """Predicted backward seconds on every stage."""
        return tuple(stage.seconds(shape) for stage in self.backward)

    def request_times(self, prompt: int, output: int) -> tuple[float, ...]:
        """Predicted seconds that a request alone spends on every stage: its prompt, then one pass per further token.

        The i-th of the `output` - 1 decode passes reads prompt + i - 1 cached tokens; as forms are linear in those, all of
        them take as long as that many passes with the mean number.
        """
        times = self.forward_times(Shape.of((prompt,)))
        passes = max(0, output - 1)
        if passes == 0:
            return times
        decode = self.forward_times(Shape(1, 1, prompt + (passes - 1) / 2))
        return tuple(first + passes * each for first, each in zip(times, decode, strict=True))

    def covers(self, length: int) -> bool:
        """Whether a prediction for this length lies within the range that the coefficients were fitted on."""
        return self.max_length is None or length <= self.max_length
