"""How much memory the simulated stages have, and what their work takes of it."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.policy import memory_rules as policy
from lemix_hpc.policy.rules import Split
from lemix_hpc.profiling.coefficients import CoefficientFile, StageMemory
from lemix_hpc.profiling.hardware import Hardware
from lemix_hpc.records.schema import MemoryUse, MemoryWaits, StageMemoryShares
from lemix_hpc.run_setup.scheduler_setup import training_nodes
from lemix_hpc.simulate.cluster_state import Memory, make_stage_memory
from lemix_hpc.simulate.dtypes import Records
from lemix_hpc.workload.length_tables import TABLES
from lemix_hpc.workload.tasks import Request

NO_LIMIT = sys.maxsize // 4
"""Bytes of a stage without a capacity beside others that have one."""


def is_limited(recipe: Recipe) -> bool:
    """Whether any stage has a capacity."""
    return any(capacity is not None for capacity in capacities(recipe))


def capacities(recipe: Recipe) -> list[float | None]:
    """GB of each stage of every node; None is without end."""
    common, kinds = recipe.policy.memory.capacity_gb, recipe.nodes.kinds
    if kinds is None:
        return [common] * recipe.nodes.count
    return [kind.memory_gb or common for kind in kinds for _ in range(kind.count)]


def at_rest(memory: StageMemory, *, trains: bool) -> int:
    """Bytes of weights, and of optimizer state where a node trains."""
    return memory.weights_bytes + (memory.optimizer_bytes if trains else 0)


def stage_memory_of(recipe: Recipe, hardware: Hardware, requests: Sequence[Request]) -> Records | None:
    """The memory of all stages, node after node; None without a capacity.

    Raises UserError for a coefficient file that does not say what work takes, and for work that would never fit.
    """
    if not is_limited(recipe):
        return None
    longest = max(
        (request for request in requests if request.output_tokens > 0),
        key=lambda request: request.prompt_tokens + request.output_tokens,
        default=None,
    )
    limits, cache, activations = [], [], []
    for node, capacity in enumerate(capacities(recipe)):
        serves, trains = _serves_and_trains(recipe, node)
        file = hardware.real[hardware.kinds[node]]
        memories = [
            _Stage(recipe, node, stage, memory, capacity, trains) for stage, memory in enumerate(_of(recipe, file))
        ]
        for stage in memories:
            if trains:
                stage.check_training()
            if serves and longest is not None:
                stage.check_request(longest)
        limits += [stage.limit for stage in memories]
        cache += [stage.cache_bytes if longest else 0 for stage in memories]
        activations += [stage.activation_bytes if trains else 0 for stage in memories]
    return make_stage_memory(limits, cache, activations)


def memory_use(recipe: Recipe, hardware: Hardware, memory: Memory) -> MemoryUse | None:
    """What a run has made of the memory; None without a capacity. Shares are of the fullest node that has one."""
    if not is_limited(recipe):
        return None
    stages = recipe.nodes.stages
    stage_memory, claims = memory.stages.reshape(-1, stages), memory.claims.reshape(-1, 2)
    shares: list[list[StageMemoryShares]] = [[] for _ in range(stages)]
    for node, capacity in enumerate(capacities(recipe)):
        held = _of(recipe, hardware.real[hardware.kinds[node]])
        for stage in range(stages if capacity is not None else 0):
            resting = at_rest(held[stage], trains=_serves_and_trains(recipe, node)[1])
            figures = (stage_memory[node, stage][name] for name in ("peak", "peak_activations", "peak_cache"))
            peak, activations, cache = (int(figure) / (1e9 * float(capacity or 1.0)) for figure in figures)
            rest = resting / (1e9 * float(capacity or 1.0))
            shares[stage].append(StageMemoryShares(rest + peak, rest, activations, cache))
    return MemoryUse(
        stages=[StageMemoryShares(*map(max, zip(*map(msgspec.structs.astuple, of), strict=True))) for of in shares],
        serving_waits=_waits(claims[:, 0]),
        training_waits=_waits(claims[:, 1]),
        offloads=int(stage_memory["offloads"].sum()),
        offloaded_bytes=int(stage_memory["offloaded"].sum()),
        preemptions=int(claims["preemptions"].sum()),
        recomputed_tokens=int(claims["recomputed"].sum()),
    )


def _waits(claims: Records) -> MemoryWaits:
    count = int(claims["waits"].sum())
    if count == 0:
        return MemoryWaits(0, None, None)
    return MemoryWaits(count, float(claims["waited"].sum()) / count, float(claims["longest"].max()))


def _serves_and_trains(recipe: Recipe, node: int) -> tuple[bool, bool]:
    if not recipe.policy.splits:
        return True, recipe.training is not None
    split = Split.of(recipe.nodes.count, training_nodes(recipe))
    return node in split.serving, node in split.training


def micro_batch_tokens(recipe: Recipe) -> int:
    """The most tokens that a micro-batch can have."""
    training = recipe.training
    if training is None:
        return 0
    length = training.sequence_length if training.lengths is None else round(TABLES[training.lengths].prompt[-1])
    return training.micro_batch_size * length


class _Stage:
    """One stage's memory, bytes."""

    def __init__(
        self, recipe: Recipe, node: int, stage: int, memory: StageMemory, capacity: float | None, trains: bool
    ) -> None:
        limits = recipe.policy.memory
        self._recipe, self._place = recipe, f"stage {stage} of node {node}"
        self._capacity = capacity
        self._resting = at_rest(memory, trains=trains)
        self.cache_bytes = math.ceil(memory.kv_bytes_per_token or 0.0)
        self.activation_bytes = math.ceil(memory.activation_bytes_per_token or 0.0)
        self._micro_batch = micro_batch_tokens(recipe) * self.activation_bytes if trains else 0
        back = self._micro_batch if limits.offload_gb_per_s else 0
        self.limit = NO_LIMIT
        if capacity is not None:
            self.limit = policy.room(round(1e9 * capacity), limits.kappa, self._resting, back)
            if self.limit < 0:
                self._refuse(
                    "weights, optimizer state" + (" and the room to bring activations back to" if back else "")
                )

    def check_training(self) -> None:
        training = self._recipe.training
        together = 1
        if training is not None and training.release == "sync" and training.schedule == "gpipe":
            # All forwards of a group come before its backwards; what was offloaded is not there meanwhile.
            together = 1 if self._recipe.policy.memory.offload_gb_per_s else training.micro_batches_per_step
        if together * self._micro_batch > self.limit:
            what = "a training micro-batch" if together == 1 else f"the {together} micro-batches of a group under gpipe"
            self._refuse(
                f"{what} (training.micro_batch_size x the longest sequence = {micro_batch_tokens(self._recipe)} tokens each)",
                together * self._micro_batch,
            )

    def check_request(self, request: Request) -> None:
        tokens = request.prompt_tokens + request.output_tokens - 1
        if tokens * self.cache_bytes > self.limit:
            self._refuse(f"the cache of request {request.id} ({tokens} tokens)", tokens * self.cache_bytes)

    def _refuse(self, what: str, nbytes: int = 0) -> None:
        kappa = self._recipe.policy.memory.kappa
        takes = f" takes {nbytes / 1e9:.3g} GB and" if nbytes else ""
        raise UserError(
            f"policy.memory: {what}{takes} never fits on {self._place}, beside {self._resting / 1e9:.3g} GB of weights and "
            f"optimizer state in {kappa:g} x {self._capacity:g} GB. Give stages more memory (policy.memory.capacity_gb, "
            "nodes.kinds.memory_gb), use more stages (nodes.stages), or make the work shorter "
            "(training.sequence_length, serving.max_prompt_tokens, serving.max_new_tokens)."
        )


def _of(recipe: Recipe, file: CoefficientFile) -> list[StageMemory]:
    memories = file.memory(recipe.nodes.stages)
    needed = {"kv_bytes_per_token": recipe.serving is not None and recipe.serving.mode == "generate"}
    needed["activation_bytes_per_token"] = recipe.training is not None
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
