"""What a run takes of memory on each stage, worked out before anything starts: by what the engines keep, and for how long.

Formulas of activations are counts of what torch saves for the backward of a layer; the tests compare them with that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.config.training_section import Recompute, Training
from lemix_hpc.engines.model_sizes import ModelSizes, describe
from lemix_hpc.engines.protocol import StageTakes
from lemix_hpc.engines.torch.handed_on import region_bytes
from lemix_hpc.engines.torch.loss_chunks import chunk_tokens
from lemix_hpc.engines.torch.partition import layer_ranges
from lemix_hpc.profiling.coefficients import CoefficientFile

BYTES = {"float32": 4, "bfloat16": 2}
MASTER, MOMENTS, GRADIENT, SNAPSHOT, VECTOR = 4, 8, 4, 12, 4
"""Bytes per weight, all of them float32."""
CONTEXT = 1.5e9
"""Bytes of a GPU that the driver, its libraries and their workspaces take. An estimate."""
GRAPHS = 1.0e9
"""Bytes of a GPU that the graphs take which vLLM captures. An estimate."""
COLLECTIVE = 0.5e9
"""Bytes of a GPU that NCCL takes to sum with other nodes. An estimate."""
USUAL_CONTEXT = 4096
"""Tokens, of models whose positions have no end."""
CPU_CACHE_GB = 0.25
"""What vLLM gets on a CPU unless it is told."""
CACHE = "KV cache"
SPARE_CACHE = 1.25
"""How much more the torch engine's caches take than their tokens: they grow by so much at a time."""
SPARE = 0.95
"""The part of a GPU's memory that a run may count on: some of the rest is in pieces that are too small."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Bytes that a stage takes on its device and in its host's memory, by what they are for. `parameters`: where there are
    any."""

    stage: int
    layers: range
    parameters: int | None
    device: Mapping[str, float]
    host: Mapping[str, float]

    @property
    def on_device(self) -> float:
        return sum(self.device.values())

    @property
    def on_host(self) -> float:
        return sum(self.host.values())


def plan_memory(recipe: Recipe, *, cuda: bool) -> list[StagePlan]:
    """Of every stage of a node, on GPUs or on processors.

    Raises UserError for a model that is not supported, or has fewer layers than stages.
    """
    sizes = describe(recipe.model)
    ranges = layer_ranges(sizes, recipe.nodes.stages)
    return [_plan(recipe, sizes, stage, layers, cuda=cuda) for stage, layers in enumerate(ranges)]


def plan_from_file(recipe: Recipe, file: CoefficientFile, in_flight: int, tokens: int) -> list[StagePlan]:
    """As `plan_memory`, of an engine without weights: what the coefficient file says of those that it stands for. With so many
    micro-batches `in_flight`, of `tokens` each.

    Raises UserError for a file that does not say it.
    """
    stages, memories = recipe.nodes.stages, file.memory(recipe.nodes.stages)
    if memories is None:
        raise UserError(f"engine.coefficients: the file of {file.model} has no `memory`, which says what stages take")
    plans, start = [], 0
    for stage, (memory, layers) in enumerate(zip(memories, file.layers_of(stages), strict=True)):
        device: dict[str, float] = {"weights": memory.weights_bytes}
        if recipe.training is not None:
            device["optimizer and gradients"] = memory.optimizer_bytes
            if recipe.recomputing and memory.input_bytes_per_token is None:
                raise UserError(
                    f"engine.coefficients: the file of {file.model} has no `input_bytes_per_token`, which says what "
                    "training.recompute keeps"
                )
            kept, again = memory.in_training(recipe.recompute_on(stage), layers)
            device["activations"] = tokens * ((in_flight - stage) * kept + again)
        if recipe.serving is not None:
            requests = recipe.engine.cached_requests * longest_request(recipe, USUAL_CONTEXT)
            device[CACHE] = requests * (memory.kv_bytes_per_token or 0.0)
        plans.append(StagePlan(stage, range(start, start + layers), None, device, {}))
        start += layers
    return plans


def cache_room(plans: Sequence[StagePlan], capacity: float) -> float:
    """Bytes that the KV cache may have on every stage: what all else leaves on the fullest one; not above 0 if nothing does.

    `capacity`: bytes of one device.
    """
    return min(SPARE * capacity - (plan.on_device - plan.device[CACHE]) for plan in plans)


def planned_cache(recipe: Recipe, capacity: float) -> int:
    """Bytes that the KV cache of each stage gets on GPUs of `capacity` bytes where training needs its part.

    Raises UserError if nothing is left for it, or nobody can say what is.
    """
    key = "engine.vllm.kv_cache_gb"
    if recipe.engine.share_devices:
        raise UserError(f"{key}: stages that share a GPU need to be told how much of it each may take; give this key")
    plans = plan_memory(recipe, cuda=True)
    room = cache_room(plans, capacity)
    if room <= 0:
        fullest = max(plans, key=lambda plan: plan.on_device - plan.device[CACHE])
        needed = fullest.on_device - fullest.device[CACHE]
        raise UserError(
            f"{key}: stage {fullest.stage} takes {needed / 1e9:.1f} of the GPU's {capacity / 1e9:.1f} GB before it has a "
            f"KV cache; `lemix plan RECIPE --gpus 1x{capacity / 2**30:.0f}GB` shows for what, and what would make it fit"
        )
    return int(room)


def stage_takes(recipe: Recipe, stage: int, capacity: int | None, *, cuda: bool) -> StageTakes:
    """What a stage takes of a device of `capacity` bytes (None: only the recipe limits it) while a run goes on.

    What rests between a micro-batch's forward and its backward is counted for each token of it, what only one pass at a time
    takes for the largest micro-batch.
    """
    sizes, training = describe(recipe.model), recipe.training
    layers = layer_ranges(sizes, recipe.nodes.stages)[stage]
    plan = _plan(recipe, sizes, stage, layers, cuda=cuda)
    wide = _width(recipe, cuda=cuda)
    own_cache = recipe.engine.kind == "vllm"  # it has all of it from the start
    resting = sum(nbytes for use, nbytes in plan.device.items() if use not in ("activations", CACHE))
    resting += plan.device[CACHE] if own_cache else 0.0
    working, kept = 0.0, 0.0
    if training is not None:
        tokens = training.micro_batch_size * training.sequence_length
        kept, again = _kept_and_again(recipe, training, sizes, stage, len(layers), wide)
        if stage == 0 and again:
            kept -= wide * sizes.hidden  # tokens came in
        working = tokens * again
        if stage == recipe.nodes.stages - 1 and not _flushes_by_groups(training):
            working, kept = working + tokens * kept, 0.0  # its backward is right behind
        if stage == recipe.nodes.stages - 1:
            working += tokens * (2 * wide + 4) * sizes.hidden
            working += min(tokens, chunk_tokens(sizes.vocab)) * head_activations(sizes, wide)
    cache = 0.0 if own_cache else SPARE_CACHE * 2 * len(layers) * sizes.keys * wide
    return StageTakes(math.ceil(resting), math.ceil(working), math.ceil(cache), math.ceil(kept), capacity)


def handed_on(recipe: Recipe) -> int:
    """Bytes of a GPU in which a stage hands tensors to others of its host. Raises UserError as `describe`."""
    return region_bytes(recipe, describe(recipe.model).hidden, _width(recipe, cuda=True))


def stage_parameters(sizes: ModelSizes, layers: range, *, first: bool, last: bool) -> int:
    """Weights of a stage."""
    embedding = sizes.head_parameters
    count = len(layers) * (sizes.layer_parameters + sizes.layer_vectors)
    if first:
        count += embedding + (sizes.max_positions or 0) * sizes.hidden
    if last:
        norm = 2 * sizes.hidden if sizes.family == "gpt2" else sizes.hidden
        # A stage that is all of a model with tied embeddings has them once.
        count += norm + (0 if first and sizes.tied else embedding)
    return count


def layer_activations(sizes: ModelSizes, dtype_bytes: int) -> int:
    """Bytes per token that a layer keeps from forward to backward, without what there is per head."""
    hidden, wide = sizes.hidden, dtype_bytes
    if sizes.family == "gpt2":
        return wide * (8 * hidden + 5 * sizes.inner)
    # In lower precision the norms work on float32 copies of their inputs.
    norms = 6 * wide * hidden if wide == 4 else (5 * wide + 8) * hidden
    return norms + wide * (2 * sizes.queries + 2 * sizes.keys + 4 * sizes.inner)


def head_activations(sizes: ModelSizes, dtype_bytes: int) -> int:
    """Bytes per token of a chunk that logits and loss take at their peak: logits, and float32 copies of them and of their
    logarithms."""
    copies = 8 if dtype_bytes == 4 else dtype_bytes + 8
    return copies * sizes.vocab


def open_groups(training: Training, stage: int, more: int = 0) -> int:
    """Gradient sums that a stage keeps at the same time. With `async` a stage is ahead of the first one, where a group ends, by
    as many backwards as there are stages between, and as many `more` as are in flight than stages; those may be of later
    groups."""
    if training.release == "sync":
        return 1
    return 1 + math.ceil((stage + more if stage else 0) / training.micro_batches_per_step)


def _plan(recipe: Recipe, sizes: ModelSizes, stage: int, layers: range, *, cuda: bool) -> StagePlan:
    stages, engine, training = recipe.nodes.stages, recipe.engine, recipe.training
    first, last = stage == 0, stage == stages - 1
    wide = _width(recipe, cuda=cuda)
    parameters = stage_parameters(sizes, layers, first=first, last=last)
    copies = 2 if engine.kind == "vllm" and engine.vllm.weights == "copy" else 1
    device: dict[str, float] = {"weights": copies * wide * parameters}
    host: dict[str, float] = {}
    if training is not None:
        state, kept = _state(training, wide, parameters, cuda=cuda)
        (host if training.offload_optimizer else device)["optimizer"] = state
        device["gradients"] = GRADIENT * parameters * open_groups(training, stage, recipe.in_flight - stages)
        device["activations"] = _activations(recipe, training, sizes, stage, len(layers), wide)
        host |= kept
    device[CACHE] = _cache(recipe, sizes, len(layers), wide, cuda=cuda)
    if cuda:
        device["context and graphs"] = CONTEXT + (GRAPHS if engine.kind == "vllm" else 0.0)
        if training is not None and training.sums == "collective":
            device["sums over nodes"] = COLLECTIVE
        if training is not None and training.cuda_graphs:
            device["graphs of training"] = _captured(training, sizes, len(layers), wide)
        if stages > 1 and engine.device_buffers in ("auto", "ipc"):
            device["handed on"] = region_bytes(recipe, sizes.hidden, wide)
    return StagePlan(stage, layers, parameters, device, host)


def _width(recipe: Recipe, *, cuda: bool) -> int:
    """Bytes of a weight."""
    dtype = recipe.engine.dtype
    return BYTES[("bfloat16" if cuda else "float32") if dtype == "auto" else dtype]


def _state(training: Training, wide: int, parameters: int, *, cuda: bool) -> tuple[float, dict[str, float]]:
    """Master copy and moments; and what the host keeps beside them."""
    has_master = wide < 4 or training.zero_stage == 1 or training.offload_optimizer
    # Without ZeRO, publishing bfloat16 weights takes a float32 copy more.
    publication = MASTER if wide < 4 and training.zero_stage == 0 else 0
    state = (MOMENTS + (MASTER if has_master else 0) + publication) * parameters
    kept: dict[str, float] = {"snapshot": SNAPSHOT * parameters}
    if training.sums == "collective":
        kept["sums over nodes"] = 0.0 if cuda else VECTOR * parameters  # gloo sums a copy
    elif training.across_nodes != "local":
        kept["sums over nodes"] = 2 * VECTOR * parameters
    return state, kept


def _activations(recipe: Recipe, training: Training, sizes: ModelSizes, stage: int, layers: int, wide: int) -> float:
    tokens, group = training.micro_batch_size * training.sequence_length, training.micro_batches_per_step
    kept, again = _kept_and_again(recipe, training, sizes, stage, layers, wide)
    last = stage == recipe.nodes.stages - 1
    in_flight = recipe.in_flight - stage if not last else 1
    if training.release == "sync":
        in_flight = group if training.schedule == "gpipe" else min(group, in_flight)
    head = 0.0
    if last:
        norms = tokens * (2 * wide + 4) * sizes.hidden
        head = norms + min(tokens, chunk_tokens(sizes.vocab)) * head_activations(sizes, wide)
    return tokens * (in_flight * kept + again) + head


def _kept_and_again(
    recipe: Recipe, training: Training, sizes: ModelSizes, stage: int, layers: int, wide: int
) -> tuple[float, float]:
    """Bytes per token that a micro-batch keeps for its backward, and those that are made again in it, of one at a time."""
    # The output of the last layer is kept as well.
    whole, start = layers * layer_activations(sizes, wide) + wide * sizes.hidden, wide * sizes.hidden
    if training.release == "async":
        # On the last stage the backward follows at once, with the same weights.
        recompute: Recompute = "none" if stage == recipe.nodes.stages - 1 else "all"
    else:
        recompute = recipe.recompute_on(stage)
    match recompute:
        case "none":
            return whole, 0.0
        case "layers":
            # With vLLM's fused weights a piece of training is half a layer.
            pieces = 2 if recipe.engine.kind == "vllm" else 1
            return pieces * layers * start, layer_activations(sizes, wide)
        case "all":
            return start, whole


def _captured(training: Training, sizes: ModelSizes, layers: int, wide: int) -> float:
    """What graphs of one micro-batch hold: activations, as much again for what comes and goes in a layer, whose memory no
    other one uses, and the gradients of all layers."""
    tokens = training.micro_batch_size * training.sequence_length
    activations = 2 * tokens * layer_activations(sizes, wide)
    return layers * (activations + wide * (sizes.layer_parameters + sizes.layer_vectors))


def _flushes_by_groups(training: Training) -> bool:
    """Whether all forwards of a group come before its backwards, on the last stage, too."""
    return training.release == "sync" and training.schedule == "gpipe"


def _cache(recipe: Recipe, sizes: ModelSizes, layers: int, wide: int, *, cuda: bool) -> float:
    """Of the torch engine it is what its batch may come to. vLLM takes what it is given at the start; on a GPU that is all that
    is left, and here what it needs for its batch."""
    engine, serving = recipe.engine, recipe.serving
    if serving is None:
        return 0.0
    if engine.kind == "vllm" and engine.vllm.kv_cache_gb is not None:
        return engine.vllm.kv_cache_gb * 1e9
    if engine.kind == "vllm" and not cuda:
        return CPU_CACHE_GB * 1e9
    tokens = engine.cached_requests * longest_request(recipe, sizes.max_positions or USUAL_CONTEXT)
    return tokens * 2 * layers * sizes.keys * wide


def longest_request(recipe: Recipe, most: int) -> int:
    """Tokens of a request and its answer, as far as the recipe limits them, and else as many as the model takes."""
    serving = recipe.serving
    assert serving is not None, "it serves"
    answer = 0 if serving.mode == "score" and serving.http is None else serving.max_new_tokens or most
    return min(most, (serving.max_prompt_tokens or most) + answer)
