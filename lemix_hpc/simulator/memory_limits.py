"""The memory of simulated stages as records, and what has become of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.profiling.hardware import Hardware
from lemix_hpc.records.schema import NodeMemory, StageMemoryPeaks
from lemix_hpc.run_setup.memory_limits import StageRoom, check_request, is_limited, longest_of, rooms_of
from lemix_hpc.simulator.cluster_state import Memory, make_stage_memory
from lemix_hpc.simulator.dtypes import Records
from lemix_hpc.workload.tasks import Request


def rooms(recipe: Recipe, hardware: Hardware, requests: Sequence[Request]) -> list[list[StageRoom]]:
    """The memory of the stages of all nodes; nothing without a capacity.

    Raises UserError for a coefficient file that does not say what work takes, and for work that would never fit.
    """
    if not is_limited(recipe):
        return []
    found = [rooms_of(recipe, hardware, node) for node in range(recipe.nodes.count)]
    longest = longest_of(requests)
    for node, of in enumerate(found):
        check_request(recipe, of, node, longest)
    return found


def stage_memory_of(nodes: Sequence[Sequence[StageRoom]], requests: Sequence[Request]) -> Records | None:
    """The memory of all stages, node after node; None without a capacity."""
    if not nodes:
        return None
    stages, caches = [room for rooms in nodes for room in rooms], longest_of(requests) is not None
    return make_stage_memory(
        [room.limit for room in stages],
        [room.cache_bytes if caches else 0 for room in stages],
        [room.activation_bytes for room in stages],
    )


def used(rooms: Sequence[Sequence[StageRoom]], memory: Memory) -> list[NodeMemory]:
    """What each node has made of its memory."""
    by_node, claims = memory.stages.reshape(len(rooms), -1), memory.claims.reshape(-1, 2)
    return [
        _used(of_node, stages, serving, training)
        for of_node, stages, (serving, training) in zip(rooms, by_node, claims, strict=True)
    ]


def _used(rooms: Sequence[StageRoom], stages: Records, serving: Any, training: Any) -> NodeMemory:
    names = StageMemoryPeaks.__struct_fields__[2:]
    return NodeMemory(
        [
            StageMemoryPeaks(room.capacity, room.resting, *(int(stage[name]) for name in names))
            for room, stage in zip(rooms, stages, strict=True)
        ],
        serving_waits=int(serving["waits"]),
        serving_waited=float(serving["waited"]),
        serving_longest=float(serving["longest"]),
        training_waits=int(training["waits"]),
        training_waited=float(training["waited"]),
        training_longest=float(training["longest"]),
        preemptions=int(serving["preemptions"] + training["preemptions"]),
        recomputed=int(serving["recomputed"] + training["recomputed"]),
    )
