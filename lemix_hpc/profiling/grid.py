"""Which passes are measured, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Profile

Kind = Literal["forward", "decode", "backward"]


@dataclass(frozen=True, slots=True)
class GridPoint:
    """One pass: `batch` sequences of `length` new tokens each, on top of `context` cached ones each."""

    kind: Kind
    batch: int
    length: int
    context: int = 0

    def exceeds(self, other: GridPoint) -> bool:
        """Whether this takes at least the memory of the other: of its kind, and no smaller in any way."""
        return (
            self.kind == other.kind
            and self.batch >= other.batch
            and self.length >= other.length
            and self.context >= other.context
        )


def design(profile: Profile, *, longest: int | None, max_tokens: int, training: bool) -> list[GridPoint]:
    """All points of a stage, spread out: whatever is measured of the first ones covers the range as evenly as it can.

    `longest`: the model's positions, None without a limit; `max_tokens`: most new tokens in one pass. Backwards are there
    with `training`. Raises UserError if nothing is left of the grid.
    """
    fitting = [length for length in sorted(set(profile.lengths)) if longest is None or length <= longest]
    batches = sorted(set(profile.batches))
    sizes = [(batch, length) for length in fitting for batch in batches if batch * length <= max_tokens]
    if not sizes:
        raise UserError(
            f"none of profile.batches x profile.lengths has at most {max_tokens} tokens (engine.max_batch_tokens)"
            + ("" if longest is None else f" and {longest} positions (the model)")
        )
    contexts = [c for c in sorted(set(profile.contexts)) if longest is None or c < longest]
    forwards = [GridPoint("forward", batch, length) for batch, length in sizes]
    decodes = [GridPoint("decode", batch, 1, context) for context in contexts for batch in batches]
    backwards = [GridPoint("backward", batch, length) for batch, length in sizes] if training else []
    return list(_take_turns(spread_out(forwards), spread_out(decodes), spread_out(backwards)))


def spread_out(points: Sequence[GridPoint]) -> list[GridPoint]:
    """The first and the last, then the middle, then the quarters, ...: van der Corput's order."""
    if len(points) < 3:
        return list(points)
    inner = len(points) - 2
    bits = inner.bit_length()
    reverse = [int(f"{index:0{bits}b}"[::-1], 2) for index in range(1 << bits)]
    order = [index - 1 for index in reverse if 1 <= index <= inner]
    return [points[0], points[-1], *(points[1:-1][index] for index in order)]


def _take_turns(*rows: Sequence[GridPoint]) -> Iterator[GridPoint]:
    """One of each row in turn, until all are through."""
    for index in range(max(map(len, rows))):
        yield from (row[index] for row in rows if index < len(row))
