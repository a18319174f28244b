"""What would make a run fit into the memory of its devices: other values of a recipe's keys, and ways to cut a host's GPUs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.config.training_section import Training
from lemix_hpc.engines.memory_plan import CACHE, SPARE, StagePlan, cache_room, plan_memory
from lemix_hpc.engines.model_sizes import describe

_GPUS = re.compile(r"(\d+)x(\d+(?:\.\d+)?)GB")


@dataclass(frozen=True, slots=True)
class Gpus:
    """The GPUs of a host. `bytes`: of each one."""

    count: int
    bytes: float

    @classmethod
    def parse(cls, text: str) -> Gpus:
        """From `8x80GB`. What is sold as GB of a GPU are GiB. Raises UserError for anything else."""
        found = _GPUS.fullmatch(text.replace(" ", ""))
        if found is None or int(found[1]) < 1 or float(found[2]) <= 0:
            raise UserError(f"--gpus: {text!r} says no GPUs; give their number and the memory of each, such as 8x80GB")
        return cls(int(found[1]), float(found[2]) * 2**30)


@dataclass(frozen=True, slots=True)
class Layout:
    """A way to use the GPUs of a host. Bytes: of the fullest stage without the KV cache, what it leaves for that (not above 0:
    it does not fit), and of the host's memory, by all its stages."""

    stages: int
    replicas: int
    offload: bool
    fullest: float
    cache: float
    host: float
    needed_cache: float

    @property
    def fits(self) -> bool:
        return self.cache >= self.needed_cache


def fits(plans: Sequence[StagePlan], capacity: float) -> bool:
    """Whether every stage has room on a device of so many bytes."""
    return all(plan.on_device <= SPARE * capacity for plan in plans)


def changes_that_fit(recipe: Recipe, capacity: float, *, cuda: bool) -> list[str]:
    """Keys with other values, each of which alone would make the run fit."""
    return [
        f"{key}: {str(value).lower() if isinstance(value, bool) else value}"
        for key, value in _candidates(recipe)
        if _fits_with(recipe, key, value, capacity, cuda=cuda)
    ]


def layouts(recipe: Recipe, gpus: Gpus) -> list[Layout]:
    """All ways to cut the GPUs of a host into replicas of equal stages, with the optimizer on the device, and offloaded."""
    layers = describe(recipe.model).layers
    counts = [stages for stages in range(1, gpus.count + 1) if gpus.count % stages == 0 and stages <= layers]
    offloads = (False, True) if recipe.training is not None else (False,)
    return [_layout(recipe, gpus, stages, offload) for offload in offloads for stages in counts]


def best(ways: Sequence[Layout]) -> Layout | None:
    """The one with most replicas: first without offload, which costs time at every step. None if none fits."""
    fitting = [way for way in ways if way.fits]
    return min(fitting, key=lambda way: (way.offload, way.stages)) if fitting else None


def _layout(recipe: Recipe, gpus: Gpus, stages: int, offload: bool) -> Layout:
    changed = with_key(recipe, "nodes.stages", stages)
    if recipe.training is not None:
        changed = with_key(changed, "training.offload_optimizer", offload)
    plans, replicas = plan_memory(changed, cuda=True), gpus.count // stages
    return Layout(
        stages=stages,
        replicas=replicas,
        offload=offload,
        fullest=max(plan.on_device - plan.device[CACHE] for plan in plans),
        cache=cache_room(plans, gpus.bytes),
        host=replicas * sum(plan.on_host for plan in plans),
        needed_cache=max(plan.device[CACHE] for plan in plans),
    )


def _candidates(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    layers = describe(recipe.model).layers
    if recipe.training is not None:
        for name, value in _of_training(recipe.training, recipe.nodes.stages):
            yield f"training.{name}", value
    if recipe.engine.dtype == "float32":
        yield "engine.dtype", "bfloat16"
    if recipe.engine.cached_requests > 1:
        yield "engine.max_batch_requests", recipe.engine.cached_requests // 2
    for stages in (2 * recipe.nodes.stages, 4 * recipe.nodes.stages):
        if stages <= layers:
            yield "nodes.stages", stages


def _of_training(training: Training, stages: int) -> Iterator[tuple[str, Any]]:
    if not training.offload_optimizer:
        yield "offload_optimizer", True
    if training.cuda_graphs:
        yield "cuda_graphs", False
    if training.release == "sync":
        for recompute in ("layers", "all"):
            if recompute != training.recompute:
                yield "recompute", recompute
    if training.release == "async" and training.micro_batches_per_step < stages - 1:
        yield "micro_batches_per_step", stages - 1
    for size in (training.micro_batch_size // 2, 1):
        if 0 < size < training.micro_batch_size:
            yield "micro_batch_size", size
    for length in (training.sequence_length // 2, training.sequence_length // 4):
        if length >= 64:
            yield "sequence_length", length


def _fits_with(recipe: Recipe, key: str, value: Any, capacity: float, *, cuda: bool) -> bool:
    return fits(plan_memory(with_key(recipe, key, value), cuda=cuda), capacity)


def with_key(recipe: Recipe, key: str, value: Any) -> Recipe:
    """The recipe with another value of one of its sections' keys."""
    section, _, name = key.partition(".")
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update={name: value})})
