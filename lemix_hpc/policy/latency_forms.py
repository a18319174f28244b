"""Forms of stage times besides `latency.Affine`: the paper's, a smooth roofline, an interpolated curve, two passes as one."""

from __future__ import annotations

import math
import operator
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from lemix_hpc.policy.latency import Row, Shape, StageTime

NO_GAINS: Row = (1.0,) * 5


@dataclass(frozen=True, slots=True)
class Quadratic:
    """t = eta sum(l^2), the paper's form: eta [s/token^2]. It has no term for cached tokens."""

    eta: float

    def seconds(self, shape: Shape) -> float:
        return self.eta * shape.squares

    def terms(self, shape: Shape) -> tuple[float, ...]:
        return (self.eta * shape.squares,)

    def with_gains(self, gains: Sequence[float]) -> Quadratic:
        (gain,) = gains
        return Quadratic(self.eta * gain)

    def scaled(self, factor: float) -> Quadratic:
        return self.with_gains((factor,))

    @property
    def count(self) -> int:
        return 1

    def level(self, tokens: int) -> float:
        return float(tokens)

    def row(self, gains: Sequence[float]) -> Row:
        return 0.0, 0.0, self.eta * gains[0], 0.0, 0.0


@dataclass(frozen=True, slots=True)
class Roofline:
    """t = (a^p + (b T)^p)^(1/p) + c sum(l^2) + d sum(kv) + e n, with T = sum(l) and n sequences that prefill.

    Reading the weights takes `a` whatever the batch, computing takes `b` per token, and the longer of both counts: the
    more sharply, the higher `p` >= 1. a [s], b [s/token], c [s/token^2], d [s/cached token], e [s/prefill].
    """

    a: float
    b: float
    p: float
    c: float = 0.0
    d: float = 0.0
    e: float = 0.0

    def roof(self, tokens: int) -> float:
        """Seconds that the batch's tokens cost together."""
        compute = self.b * tokens
        longer, shorter = max(self.a, compute), min(self.a, compute)
        if longer == 0.0:
            return 0.0
        # A power of the ratio, unlike one of the seconds, can neither overflow nor vanish.
        return longer * math.pow(1.0 + math.pow(shorter / longer, self.p), 1.0 / self.p)

    def seconds(self, shape: Shape) -> float:
        return self.roof(shape.tokens) + self.c * shape.squares + self.d * shape.cached + self.e * shape.prefills

    def terms(self, shape: Shape) -> tuple[float, ...]:
        return self.roof(shape.tokens), self.c * shape.squares, self.d * shape.cached, self.e * shape.prefills

    def with_gains(self, gains: Sequence[float]) -> Roofline:
        roof, c, d, e = gains
        return Roofline(self.a * roof, self.b * roof, self.p, self.c * c, self.d * d, self.e * e)

    def scaled(self, factor: float) -> Roofline:
        return self.with_gains((factor,) * 4)

    @property
    def count(self) -> int:
        return 4

    def level(self, tokens: int) -> float:
        return self.roof(tokens)

    def row(self, gains: Sequence[float]) -> Row:
        roof, c, d, e = gains
        return 0.0, roof, self.c * c, self.d * d, self.e * e


@dataclass(frozen=True, slots=True)
class Interpolated:
    """t = g(T) + c sum(l^2) + d sum(kv) + e n: like `Roofline`, with a curve g through measured token counts.

    Between `knots`, increasing token counts, g is linear through the non-decreasing seconds `curve`; so it can follow the
    steps of tiled kernels. Outside it goes on like the roof of `outside`, in proportion to the end of the curve.
    """

    knots: tuple[int, ...]
    curve: tuple[float, ...]
    outside: Roofline

    def level(self, tokens: int) -> float:
        """Seconds that the batch's tokens cost together."""
        right = bisect_left(self.knots, tokens)
        if right == len(self.knots) or tokens < self.knots[0]:
            return self._beyond(tokens, max(0, right - 1))
        if tokens == self.knots[right]:
            return self.curve[right]
        left = right - 1
        share = (tokens - self.knots[left]) / (self.knots[right] - self.knots[left])
        return self.curve[left] + share * (self.curve[right] - self.curve[left])

    def _beyond(self, tokens: int, end: int) -> float:
        at_end = self.outside.roof(self.knots[end])
        return self.curve[end] * (self.outside.roof(tokens) / at_end if at_end > 0.0 else 1.0)

    def seconds(self, shape: Shape) -> float:
        line = self.outside
        return self.level(shape.tokens) + line.c * shape.squares + line.d * shape.cached + line.e * shape.prefills

    def terms(self, shape: Shape) -> tuple[float, ...]:
        line = self.outside
        return self.level(shape.tokens), line.c * shape.squares, line.d * shape.cached, line.e * shape.prefills

    def with_gains(self, gains: Sequence[float]) -> Interpolated:
        curve = tuple(seconds * gains[0] for seconds in self.curve)
        return Interpolated(self.knots, curve, self.outside.with_gains(gains))

    def scaled(self, factor: float) -> Interpolated:
        return self.with_gains((factor,) * 4)

    @property
    def count(self) -> int:
        return 4

    def row(self, gains: Sequence[float]) -> Row:
        curve, c, d, e = gains
        return 0.0, curve, self.outside.c * c, self.outside.d * d, self.outside.e * e


@dataclass(frozen=True, slots=True)
class Together:
    """The time of two passes of one shape, each of any form: a backward that computes its forward again.

    Its terms are those of `StageTime.row`, of both together, each times its gain.
    """

    first: StageTime
    second: StageTime
    gains: Row = NO_GAINS

    def seconds(self, shape: Shape) -> float:
        return sum(self.terms(shape))

    def terms(self, shape: Shape) -> tuple[float, ...]:
        sizes = 1.0, self.level(shape.tokens), shape.squares, shape.cached, shape.prefills
        return tuple(coefficient * size for coefficient, size in zip(self.row(NO_GAINS), sizes, strict=True))

    def with_gains(self, gains: Sequence[float]) -> Together:
        constant, level, squares, cached, prefills = map(operator.mul, self.gains, gains)
        return Together(self.first, self.second, (constant, level, squares, cached, prefills))

    def scaled(self, factor: float) -> Together:
        return self.with_gains((factor,) * 5)

    @property
    def count(self) -> int:
        return 5

    def level(self, tokens: int) -> float:
        """Seconds that the batch's tokens cost together."""
        return sum(_whole(form)[1] * form.level(tokens) for form in (self.first, self.second))

    def row(self, gains: Sequence[float]) -> Row:
        own, other, factors = _whole(self.first), _whole(self.second), tuple(map(operator.mul, self.gains, gains))
        constant, _, squares, cached, prefills = (
            factor * (one + two) for factor, one, two in zip(factors, own, other, strict=True)
        )
        return constant, factors[1], squares, cached, prefills

    def first_with(self, gains: Sequence[float]) -> StageTime:
        """The first pass alone, with the gains of what was learned of both."""
        return self.first.with_gains([_gain_of(self.first, term, gains) for term in range(self.first.count)])


def _whole(form: StageTime) -> Row:
    return form.row((1.0,) * form.count)


def _gain_of(form: StageTime, term: int, gains: Sequence[float]) -> float:
    """The gain of that column of a row which the term is in; of a term that is nothing it does not matter."""
    alone = form.row([float(other == term) for other in range(form.count)])
    return next((gain for gain, coefficient in zip(gains, alone, strict=True) if coefficient > 0.0), 1.0)
