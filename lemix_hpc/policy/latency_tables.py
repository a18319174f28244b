"""Stage times as arrays, for compiled code: the same figures as `latency.StageTime`, from a table and five coefficients.

t = constant + gain * level(T) + c sum(l^2) + d sum(kv) + e n,   T = sum(l), n sequences that prefill
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lemix_hpc.policy.by_reference import by_reference
from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.policy.latency import LatencyModel, StageTime
from lemix_hpc.policy.latency_forms import Interpolated, Together

FORWARD_PASS, BACKWARD_PASS, SERVE_PASS = range(3)
"""Directions of a pass. Serving is a forward too, but recalibrated on its own."""

TABLE = 8192
"""Levels are tabulated for up to so many tokens, and to the end of measured curves; beyond, the last step goes on. Forms are
straight there."""


@by_reference
class Times(NamedTuple):
    """`level`: (kinds, 2, stages, tokens); `linear`: (kinds, 3, stages, 5), [s] per unit; `kind_of`: (nodes,).

    Nodes of one kind share their times. The first index of both after the kind is the direction; serving has the levels
    of a forward.
    """

    level: NDArray[np.float64]
    linear: NDArray[np.float64]
    kind_of: NDArray[np.int64]


def make_times(latencies: Sequence[LatencyModel], kind_of: NDArray[np.int64], table: int = TABLE) -> Times:
    """Tabulate one latency model for every kind of node; all have the same number of stages."""
    stages = latencies[0].stages
    all_forms = {form for latency in latencies for form in latency.forward + latency.backward}
    table = max([table, *(knot + 1 for form in all_forms for knot in _last_knots(form))])
    # Most stages are alike.
    levels = cache(partial(_levels, table=table))
    level = np.empty((len(latencies), 2, stages, table + 1))
    linear = np.empty((len(latencies), 3, stages, 5))
    for kind, latency in enumerate(latencies):
        for direction, forms in enumerate((latency.forward, latency.backward, latency.forward)):
            for stage, form in enumerate(forms):
                linear[kind, direction, stage] = form.row((1.0,) * form.count)
                if direction != SERVE_PASS:
                    level[kind, direction, stage] = levels(form)
    return Times(level, linear, np.ascontiguousarray(kind_of, dtype=np.int64))


def with_own_kind(times: Times, node: int) -> Times:
    """The same times, where a node is of a kind of its own, the last one: it has those of its kind until they are changed."""
    kind, kind_of = times.kind_of[node], times.kind_of.copy()
    kind_of[node] = len(times.linear)
    level, linear = (np.concatenate([table, table[kind : kind + 1]]) for table in (times.level, times.linear))
    return Times(level, linear, kind_of)


def _last_knots(form: StageTime) -> Iterator[int]:
    if isinstance(form, Interpolated):
        yield form.knots[-1]
    elif isinstance(form, Together):
        yield from _last_knots(form.first)
        yield from _last_knots(form.second)


def _levels(form: StageTime, table: int) -> list[float]:
    return [form.level(tokens) for tokens in range(table + 1)]


@compiled
def stage_seconds(
    times: Times, node: int, direction: int, stage: int, tokens: int, squares: float, cached: float, prefills: int
) -> float:
    """Predicted seconds of one pass on a stage of a node."""
    return kind_seconds(times, times.kind_of[node], direction, stage, tokens, squares, cached, prefills)


@inlined
def kind_seconds(
    times: Times, kind: int, direction: int, stage: int, tokens: int, squares: float, cached: float, prefills: int
) -> float:
    """Predicted seconds of one pass on a stage of any node of this kind."""
    level = times.level[kind, BACKWARD_PASS if direction == BACKWARD_PASS else FORWARD_PASS, stage]
    last = level.size - 1
    height = level[tokens] if tokens <= last else level[last] + (tokens - last) * (level[last] - level[last - 1])
    row = times.linear[kind, direction, stage]
    seconds: float = row[0] + row[1] * height + row[2] * squares + row[3] * cached + row[4] * prefills
    return seconds
