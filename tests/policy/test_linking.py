"""Functions that are optimised only as parts of what Python calls."""

from __future__ import annotations

import numpy as np

from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.policy.state import Floats


@compiled
def leaf(values: Floats, at: int) -> float:
    values[at] += 1.0
    return float(values[at])


@inlined
def left(values: Floats) -> float:
    return float(leaf(values, 0))


@compiled
def right(values: Floats) -> float:
    return float(leaf(values, 0) + leaf(values, 1))


@compiled
def root(values: Floats) -> float:
    return float(left(values) + right(values) + min(values[0], 3.0))


@compiled
def larger(one: int, other: int) -> int:
    return max(one, other)


def test_functions_that_are_called_along_several_ways_are_there_once() -> None:
    values = np.zeros(2)
    assert root(values) == 1.0 + (2.0 + 1.0) + 2.0
    assert values.tolist() == [2.0, 1.0]
    (made,) = root._outer.overloads.values()  # type: ignore[attr-defined]
    names = [function.name for function in made.library._final_module.functions if not function.is_declaration]
    assert len(names) == len(set(names))


def test_several_of_them_may_need_the_same_one() -> None:
    values = np.zeros(2)
    assert (right(values), left(values), leaf(values, 1)) == (2.0, 2.0, 2.0)


def test_each_type_of_arguments_is_compiled() -> None:
    assert larger(1, 2) == 2
    assert larger(1.5, 0.5) == 1.5  # type: ignore[arg-type]
    floats32 = np.zeros(2, dtype=np.float32)
    assert right(floats32) == 2.0  # type: ignore[arg-type]
