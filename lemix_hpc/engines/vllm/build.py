"""Building a stage that vLLM serves on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.v1.worker.worker_base import WorkerWrapperBase

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.host_files import forget_shared_by
from lemix_hpc.engines.memory_plan import stage_takes
from lemix_hpc.engines.model_sizes import describe
from lemix_hpc.engines.torch.build import hugging_face_config, weight_source
from lemix_hpc.engines.torch.captured_blocks import captured_blocks
from lemix_hpc.engines.torch.device_buffers import sends_device_memory
from lemix_hpc.engines.torch.devices import like_here, take
from lemix_hpc.engines.torch.optimizer import StageOptimizer
from lemix_hpc.engines.torch.partition import layer_ranges
from lemix_hpc.engines.torch.payloads import Wire
from lemix_hpc.engines.torch.solo_world import group_of_this_rank
from lemix_hpc.engines.vllm.aliasing import share
from lemix_hpc.engines.vllm.args import server_args
from lemix_hpc.engines.vllm.hugging_face import CopiedWeights, fill
from lemix_hpc.engines.vllm.lone_stage import LoneStage
from lemix_hpc.engines.vllm.model_files import fills
from lemix_hpc.engines.vllm.module import FusedLlamaStage
from lemix_hpc.engines.vllm.pass_thread import PassThread
from lemix_hpc.engines.vllm.stage import TrainingParts, VllmStage
from lemix_hpc.engines.vllm.stage_socket import StageSocket

START_TIMEOUT_S = 600.0


def build_stage(recipe: Recipe, *, stage: int, device: str, meeting: Path) -> VllmStage:
    """Stage `stage` of a node whose ranks meet in a directory; returns once vLLM's engine process has started it.

    Raises UserError as the torch engine does, and TimeoutError if the engine process does not come.
    """
    ranges = layer_ranges(describe(recipe.model), recipe.nodes.stages)
    # Both engines cut the model in the same places.
    os.environ["VLLM_PP_LAYER_PARTITION"] = ",".join(str(len(layers)) for layers in ranges)
    socket = StageSocket(meeting, stage)
    call = socket.wait_for_start(START_TIMEOUT_S)
    place = torch.device(device)
    take(place)  # vLLM asks which device is the current one, and keeps to the current stream
    worker = _start_worker(call.args[0], stage, len(ranges), meeting)
    training = _training(recipe, worker, stage, ranges, place)
    socket.started()
    return VllmStage(socket, worker, training, PassThread(like_here(place)))


def build_lone_stage(recipe: Recipe, *, stage: int, device: str, meeting: Path) -> LoneStage:
    """A stage as `build_stage` makes it, without an engine process: for a profiling job, whose stages build at the same time.

    The grid may have more requests and tokens in a batch than the recipe's runs.
    """
    ranges = layer_ranges(describe(recipe.model), recipe.nodes.stages)
    os.environ["VLLM_PP_LAYER_PARTITION"] = ",".join(str(len(layers)) for layers in ranges)
    place = torch.device(device)
    take(place)
    own = meeting / f"model-{stage}"
    own.mkdir()
    config = AsyncEngineArgs.from_cli_args(server_args(_for_grid(recipe), own)).create_engine_config()
    worker = _start_worker(config, stage, len(ranges), meeting)
    return LoneStage(worker, config, _training(recipe, worker, stage, ranges, place))


def _for_grid(recipe: Recipe) -> Recipe:
    engine, grid = recipe.engine, recipe.profile
    most = {
        "max_batch_requests": max(engine.max_batch_requests, *grid.batches),
        "max_batch_tokens": max(engine.max_batch_tokens, *grid.batches, *grid.contexts),
    }
    return recipe.model_copy(update={"engine": engine.model_copy(update=most)})


def _training(
    recipe: Recipe, worker: WorkerWrapperBase, stage: int, ranges: Sequence[range], place: torch.device
) -> TrainingParts:
    """Training on the weights of a worker, which get the recipe's values."""
    config = hugging_face_config(recipe.model)
    served = worker.get_model()
    ends = {"first": stage == 0, "last": stage == len(ranges) - 1}
    if fills(recipe.model):
        fill(served, weight_source(recipe, config), config, ranges[stage], **ends)
    training = recipe.training
    copied = recipe.engine.vllm.weights == "copy"
    weights = {name: weight.clone() if copied else weight for name, weight in served.named_parameters()}
    module = FusedLlamaStage(config, weights, ranges[stage], device=place, **ends)
    # vLLM has made a world of the node's stages; DeepSpeed works on this one alone.
    alone = group_of_this_rank()
    optimizer = None if training is None else StageOptimizer(module, training, process_group=alone)
    if not copied:
        share(served, module)
    return TrainingParts(
        module,
        Wire(place, device_buffers=sends_device_memory(recipe.engine, place)),
        optimizer,
        CopiedWeights(served, module) if copied else None,
        keep_graphs=training is not None and training.release == "sync",
        recompute=recipe.recompute_on(stage),
        max_positions=describe(recipe.model).max_positions,
        # The memory plan has divided a GPU between vLLM's cache and training.
        takes=stage_takes(recipe, stage, None, cuda=place.type == "cuda"),
        offloads=recipe.policy.memory.capacity_gb is not None and recipe.policy.memory.mode == "offload",
        captured=captured_blocks(module, training),
    )


def _start_worker(config: Any, stage: int, stages: int, meeting: Path) -> WorkerWrapperBase:
    """vLLM's worker of this stage with its weights loaded, and torch.distributed over the node's stages."""
    worker = WorkerWrapperBase(rpc_rank=stage, global_rank=stage)
    # A file instead of a port: no race for it, and the name tells the nodes of a host apart in shared memory, too.
    arguments = {
        "vllm_config": config,
        "local_rank": 0 if current_platform.is_cpu() else torch.cuda.current_device(),
        "rank": stage,
        "distributed_init_method": f"file://{meeting}/torch-{meeting.name}",
        "is_driver_worker": stage == 0,
    }
    worker.init_worker([arguments if index == stage else {} for index in range(stages)])
    worker.init_device()
    # All stages have it now.
    forget_shared_by(meeting.name)
    worker.load_model()
    current_platform.update_block_size_for_backend(config)
    return worker
