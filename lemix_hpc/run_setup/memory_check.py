"""Whether every task of a run can fit into the memory of its stages, as far as that is known before they are there."""

from __future__ import annotations

from collections.abc import Iterable

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.memory_plan import stage_takes
from lemix_hpc.profiling.hardware import load_hardware
from lemix_hpc.run_setup.memory_limits import StageRoom, check_request, is_limited, longest_of, room_of, rooms_of
from lemix_hpc.workload.tasks import Request


def check_memory(recipe: Recipe, requests: Iterable[Request]) -> None:
    """Raises UserError for a stage that can never hold the largest micro-batch, or the longest of the requests, by itself.

    On a GPU whose memory the recipe does not limit, nobody knows before the run.
    """
    if not is_limited(recipe):
        return
    longest = longest_of(requests)
    for node in range(recipe.nodes.count):
        check_request(recipe, _rooms(recipe, node), node, longest)


def _rooms(recipe: Recipe, node: int) -> list[StageRoom]:
    if not recipe.engine.computes:
        return rooms_of(recipe, load_hardware(recipe), node)
    cuda = recipe.engine.device == "cuda"
    return [
        room_of(recipe, node, stage, stage_takes(recipe, stage, None, cuda=cuda))
        for stage in range(recipe.nodes.stages)
    ]
