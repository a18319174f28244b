"""Named tuples that compiled functions take as one pointer, and functions that both compiled ones and Python call."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from numba.core.errors import TypingError

from lemix_hpc.policy.by_reference import by_reference
from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.policy.state import Floats, Ints


@by_reference
class Inside(NamedTuple):
    counts: Ints
    factor: float


@by_reference
class Outside(NamedTuple):
    inside: Inside
    sums: Floats
    yes: bool
    times: int


@compiled
def add(inside: Inside, at: int, more: int) -> None:
    inside.counts[at] += more


@inlined
def weighted(inside: Inside, at: int) -> float:
    return float(inside.counts[at] * inside.factor)


@compiled
def step(outside: Outside, at: int) -> int:
    if outside.yes:
        add(outside.inside, at, outside.times)
    outside.sums[at] = weighted(outside.inside, at)
    return outside.times


def make(*, yes: bool = True, times: int = 3) -> Outside:
    return Outside(Inside(np.array([1, 2]), 0.5), np.zeros(2), yes, times)


def test_arrays_are_changed_where_they_are() -> None:
    outside = make()
    assert step(outside, 1) == 3
    assert outside.inside.counts.tolist() == [1, 5]
    assert outside.sums.tolist() == [0.0, 2.5]


def test_each_call_reads_the_tuple_that_it_is_given() -> None:
    step(make(), 0)
    assert step(make(times=4), 0) == 4
    unchanged = make(yes=False)
    step(unchanged._replace(sums=unchanged.sums[::-1].copy()), 0)
    assert unchanged.inside.counts.tolist() == [1, 2]
    assert unchanged.sums.tolist() == [0.0, 0.0]


def test_what_compiled_functions_call_can_be_called_from_python() -> None:
    outside = make()
    add(outside.inside, 0, 7)
    assert weighted(outside.inside, 0) == 4.0


def test_a_tuple_of_other_fields_is_another_type() -> None:
    floats = Outside(Inside(np.array([1.5, 2.5]), 0.5), np.zeros(2), True, 1)
    step(floats, 0)
    assert floats.inside.counts.tolist() == [2.5, 2.5]
    with pytest.raises(TypingError, match="getitem"):
        step(Outside(Inside(1, 0.5), np.zeros(2), True, 1), 0)  # type: ignore[arg-type]
