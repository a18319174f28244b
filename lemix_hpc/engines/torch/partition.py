"""Cutting a model's layers into contiguous pipeline stages of about equal cost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from lemix_hpc.config.errors import UserError
from lemix_hpc.engines.model_sizes import ModelSizes


def layer_ranges(sizes: ModelSizes, stages: int) -> list[range]:
    """The decoder layers of each stage; the last also computes the language-model head, which counts as layers' weights.

    Raises UserError if there are more stages than layers.
    """
    if stages > sizes.layers:
        raise UserError(
            f"nodes.stages is {stages}, but the model has only {sizes.layers} decoder layers and a stage needs at least "
            f"one. Use at most {sizes.layers} stages."
        )
    return balanced([sizes.layer_parameters] * sizes.layers, sizes.head_parameters, stages)


def balanced(layer_costs: Sequence[float], head_cost: float, stages: int) -> list[range]:
    """Contiguous ranges, none empty, that minimise the largest stage cost and then the sum of squared costs."""
    count = len(layer_costs)
    before = [0.0, *accumulate(layer_costs)]

    def cost(start: int, stop: int) -> float:
        return before[stop] - before[start] + (head_cost if stop == count else 0.0)

    # best[stop]: (largest cost, sum of squares, cuts) of the first `stop` layers in the stages so far.
    best: dict[int, tuple[float, float, tuple[int, ...]]] = {0: (0.0, 0.0, (0,))}
    for stage in range(1, stages + 1):
        stops = range(stage, count - (stages - stage) + 1) if stage < stages else [count]
        best = {
            stop: min(
                (max(largest, cost(start, stop)), squares + cost(start, stop) ** 2, (*cuts, stop))
                for start, (largest, squares, cuts) in best.items()
                if start < stop
            )
            for stop in stops
        }
    cuts = best[count][2]
    return [range(start, stop) for start, stop in pairwise(cuts)]
