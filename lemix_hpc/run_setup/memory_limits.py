"""How much memory stages have, what their work takes of it, and what a run has made of it."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.policy_section import Policy
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.protocol import StageTakes
from lemix_hpc.policy import memory_rules
from lemix_hpc.policy.rules import Split
from lemix_hpc.profiling.coefficients import CoefficientFile, StageMemory
from lemix_hpc.profiling.hardware import Hardware
from lemix_hpc.records.schema import MemoryUse, MemoryWaits, NodeMemory, StageMemoryPeaks, StageMemoryShares
from lemix_hpc.run_setup.scheduler_setup import training_nodes
from lemix_hpc.workload.length_tables import TABLES
from lemix_hpc.workload.tasks import Request

NO_LIMIT = sys.maxsize // 4
"""Bytes of a stage without a capacity beside others that have one."""


@dataclass(frozen=True, slots=True)
class StageRoom:
    """Bytes on a stage: that tasks may take (`limit`), and that they take for a token in the cache and in training; what
    weights and optimizer state take (`resting`) of all that there is (`capacity`, None without an end); and the `least` that
    tasks need for training to go on."""

    limit: int
    cache_bytes: int
    activation_bytes: int
    resting: int
    capacity: float | None
    least: int = 0


def longest_hold(policy: Policy) -> float:
    """How long requests may keep training from memory [s]."""
    return policy.max_hold_s if policy.serving_first else 0.0


def is_limited(recipe: Recipe) -> bool:
    """Whether any stage has a capacity."""
    return any(capacity is not None for capacity in capacities(recipe))


def offloads(recipe: Recipe) -> bool:
    """Whether activations go to the host where memory is short."""
    memory = recipe.policy.memory
    return memory.mode == "offload" and (recipe.engine.computes or memory.offload_gb_per_s is not None)


def capacities(recipe: Recipe) -> list[float | None]:
    """GB of each stage of every node; None is without end."""
    common, kinds = recipe.policy.memory.capacity_gb, recipe.nodes.kinds
    if kinds is None:
        return [common] * recipe.nodes.count
    return [kind.memory_gb or common for kind in kinds for _ in range(kind.count)]


def rooms_of(recipe: Recipe, hardware: Hardware, node: int) -> list[StageRoom]:
    """The memory of the stages of a node, by its coefficient file.

    Raises UserError for a file that does not say what work takes, and for work that would never fit.
    """
    capacity, file = capacities(recipe)[node], hardware.real[hardware.kinds[node]]
    return [
        _room_of(recipe, node, stage, memory, layers, capacity if capacity is None else 1e9 * capacity)
        for stage, (memory, layers) in enumerate(
            zip(_of(recipe, file), file.layers_of(recipe.nodes.stages), strict=True)
        )
    ]


def room_of(recipe: Recipe, node: int, stage: int, takes: StageTakes) -> StageRoom:
    """The memory of a stage that computes. Raises UserError if nothing is left for tasks, or not enough for one."""
    memory, given = recipe.policy.memory, capacities(recipe)[node]
    capacity = takes.capacity if given is None else round(1e9 * given)
    resting = takes.resting + takes.working
    limit = NO_LIMIT
    if capacity is not None and memory.mode != "ignore":
        limit = memory_rules.room(capacity, memory.kappa, resting)
    least = _least(recipe, takes.activation_bytes) if trains(recipe, node) else 0
    room = StageRoom(limit, takes.cache_bytes, takes.activation_bytes, resting, capacity, least)
    place = f"stage {stage} of node {node}"
    if limit < 0:
        _refuse(recipe, room, place, "what a pass takes")
    _check_training(recipe, room, place)
    return room


def check_request(recipe: Recipe, rooms: Sequence[StageRoom], node: int, longest: Request | None) -> None:
    """Raises UserError if the longest of the requests that generate, if there is one, would never fit.

    With offloading it is to fit beside the room for the largest micro-batch: training that goes on never gives that back.
    """
    if longest is None or not _serves(recipe, node):
        return
    tokens = longest.prompt_tokens + longest.output_tokens - 1
    back = micro_batch_tokens(recipe) if offloads(recipe) else 0
    for stage, room in enumerate(rooms):
        if tokens * room.cache_bytes > room.limit - back * room.activation_bytes:
            what = f"the cache of request {longest.id} ({tokens} tokens)"
            _refuse(recipe, room, f"stage {stage} of node {node}", what, tokens * room.cache_bytes)


def longest_of(requests: Iterable[Request]) -> Request | None:
    """The request whose cache grows largest, None if none has one."""
    return max(
        (request for request in requests if request.output_tokens > 0),
        key=lambda request: request.prompt_tokens + request.output_tokens,
        default=None,
    )


def memory_use(nodes: Sequence[NodeMemory]) -> MemoryUse | None:
    """What a run has made of the memory of its nodes, None without any that has an end."""
    stages = [peaks for node in nodes for peaks in node.stages]
    if all(peaks.capacity is None for peaks in stages):
        return None
    return MemoryUse(
        stages=[_shares(of) for of in zip(*(node.stages for node in nodes), strict=True)],
        serving_waits=_waits([(node.serving_waits, node.serving_waited, node.serving_longest) for node in nodes]),
        training_waits=_waits([(node.training_waits, node.training_waited, node.training_longest) for node in nodes]),
        offloads=sum(peaks.offloads for peaks in stages),
        offloaded_bytes=sum(peaks.offloaded for peaks in stages),
        preemptions=sum(node.preemptions for node in nodes),
        recomputed_tokens=sum(node.recomputed for node in nodes),
    )


def _shares(nodes: Sequence[StageMemoryPeaks]) -> StageMemoryShares:
    """Of the same stage of all nodes."""
    limited = [(peaks, peaks.capacity) for peaks in nodes if peaks.capacity is not None]
    return StageMemoryShares(
        peak=max((peaks.resting + peaks.peak) / capacity for peaks, capacity in limited),
        resting=max(peaks.resting / capacity for peaks, capacity in limited),
        activations=max(peaks.peak_activations / capacity for peaks, capacity in limited),
        cache=max(peaks.peak_cache / capacity for peaks, capacity in limited),
        waits=sum(peaks.waits for peaks in nodes),
        offloads=sum(peaks.offloads for peaks in nodes),
        preemptions=sum(peaks.preemptions for peaks in nodes),
    )


def _waits(nodes: Sequence[tuple[int, float, float]]) -> MemoryWaits:
    """Of the number, the sum and the longest of each node's waits."""
    count = sum(number for number, *_ in nodes)
    if count == 0:
        return MemoryWaits(0, None, None)
    return MemoryWaits(count, sum(total for _, total, _ in nodes) / count, max(longest for *_, longest in nodes))


def _serves(recipe: Recipe, node: int) -> bool:
    return not recipe.policy.splits or node in Split.of(recipe.nodes.count, training_nodes(recipe)).serving


def trains(recipe: Recipe, node: int) -> bool:
    """Whether training goes to this node."""
    if not recipe.policy.splits:
        return recipe.training is not None
    return node in Split.of(recipe.nodes.count, training_nodes(recipe)).training


def micro_batch_tokens(recipe: Recipe) -> int:
    """The most tokens that a micro-batch can have."""
    training = recipe.training
    if training is None:
        return 0
    length = training.sequence_length if training.lengths is None else round(TABLES[training.lengths].prompt[-1])
    return training.micro_batch_size * length


def _room_of(
    recipe: Recipe, node: int, stage: int, memory: StageMemory, layers: int, capacity: float | None
) -> StageRoom:
    """The memory of a stage by its coefficient file, of `capacity` bytes. Raises UserError if that leaves nothing, or not
    enough for training."""
    limits, place = recipe.policy.memory, f"stage {stage} of node {node}"
    resting, activation_bytes = memory.weights_bytes, 0
    if trains(recipe, node):
        kept, again = memory.in_training(recipe.recompute_on(stage), layers)
        resting += memory.optimizer_bytes + math.ceil(again * micro_batch_tokens(recipe))
        activation_bytes = math.ceil(kept)
    limit = NO_LIMIT
    if capacity is not None and limits.mode != "ignore":
        limit = memory_rules.room(round(capacity), limits.kappa, resting)
    cache_bytes = math.ceil(memory.kv_bytes_per_token or 0.0)
    room = StageRoom(limit, cache_bytes, activation_bytes, resting, capacity, _least(recipe, activation_bytes))
    if limit < 0:
        _refuse(recipe, room, place, "weights, optimizer state")
    _check_training(recipe, room, place)
    return room


def _least(recipe: Recipe, activation_bytes: int) -> int:
    """Bytes that a stage has to have for training to go on, whatever else there is."""
    return _needed_together(recipe) * micro_batch_tokens(recipe) * activation_bytes


def _needed_together(recipe: Recipe) -> int:
    training = recipe.training
    if training is None:
        return 0
    gpipe = training.release == "sync" and training.schedule == "gpipe"
    return memory_rules.micro_batches_needed(training.micro_batches_per_step, gpipe, offloads(recipe))


def _check_training(recipe: Recipe, room: StageRoom, place: str) -> None:
    """Raises UserError if the largest micro-batch would never fit, with those that have to be there at the same time."""
    if room.least > room.limit:
        together, tokens = _needed_together(recipe), micro_batch_tokens(recipe)
        what = "a training micro-batch" if together == 1 else f"{together} micro-batches of a group under gpipe"
        what += f" (training.micro_batch_size x the longest sequence = {tokens} tokens each)"
        _refuse(recipe, room, place, what, room.least)


def _refuse(recipe: Recipe, room: StageRoom, place: str, what: str, nbytes: int = 0) -> None:
    kappa = recipe.policy.memory.kappa
    takes = f" takes {nbytes / 1e9:.3g} GB and" if nbytes else ""
    raise UserError(
        f"policy.memory: {what}{takes} never fits on {place}, beside {room.resting / 1e9:.3g} GB of weights and "
        f"optimizer state in {kappa:g} x {(room.capacity or 0.0) / 1e9:g} GB. Give stages more memory "
        "(policy.memory.capacity_gb, nodes.kinds.memory_gb), use more stages (nodes.stages), or make the work shorter "
        "(training.sequence_length, serving.max_prompt_tokens, serving.max_new_tokens)."
    )


def _of(recipe: Recipe, file: CoefficientFile) -> list[StageMemory]:
    memories = file.memory(recipe.nodes.stages)
    needed = {"kv_bytes_per_token": recipe.serving is not None and recipe.serving.mode == "generate"}
    needed["activation_bytes_per_token"] = recipe.training is not None
    needed["input_bytes_per_token"] = recipe.recomputing > 0
    missing = ["memory"] if memories is None else []
    for key, is_needed in needed.items():
        if is_needed and any(getattr(memory, key) is None for memory in memories or ()):
            missing.append(f"memory.{key}")
    if memories is None or missing:
        raise UserError(
            f"policy.memory.capacity_gb: the coefficients of {file.model} on {file.hardware} have no "
            f"{' and no '.join(missing)}, which says what stages hold. `lemix profile` measures it; or write it into the "
            "file (docs/coefficients.md), or leave the capacity out."
        )
    return memories
