"""A stage of vLLM without its engine process: passes are planned here, one at a time, so that each can be measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count

import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.sampling_params import RequestOutputKind
from vllm.v1.attention.backends.utils import resolve_kv_cache_layout
from vllm.v1.core.kv_cache_utils import get_kv_cache_configs
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs
from vllm.v1.outputs import AsyncModelRunnerOutput
from vllm.v1.worker.worker_base import WorkerWrapperBase

from lemix_hpc.engines.meter import DeviceMemoryError
from lemix_hpc.engines.protocol import LedByLeader, Payload, SequenceResult, ServeBatch, ServeSequence, Work
from lemix_hpc.engines.torch.memory_errors import may_be_repeated
from lemix_hpc.engines.vllm.stage import BETWEEN_STAGES, SharedTraining, TrainingParts


class LoneStage(LedByLeader, SharedTraining):
    """Implements `lemix_hpc.engines.protocol.StageEngine`, for a profiling job. Its KV cache is made with the first batch, so
    that what the stage takes at rest is without it."""

    def __init__(self, worker: WorkerWrapperBase, config: VllmConfig, training: TrainingParts) -> None:
        """`worker`: vLLM's, with its weights loaded; `config`: what it was made with."""
        super().__init__(training)
        register_all_kvcache_specs(config)
        self._worker, self._config = worker, config
        self._specs = worker.get_kv_cache_spec()
        self._planner: Planner | None = None

    @property
    def cache_bytes_per_token(self) -> float:
        """Of all layers of the stage."""
        return float(sum(spec.page_size_bytes / spec.block_size for spec in self._specs.values()))

    def serve(self, batch: ServeBatch, hidden: Payload | None) -> Work[Payload | list[SequenceResult] | None]:
        return may_be_repeated(self._serve(batch, hidden))

    def _serve(self, batch: ServeBatch, hidden: Payload | None) -> Work[Payload | list[SequenceResult] | None]:
        self._planner = self._planner or self._with_cache()
        plan = self._planner.plan(batch.sequences)
        arrive = None
        if hidden is not None:  # both that come from the stage before have this shape
            arrive = partial(dict.fromkeys, BETWEEN_STAGES, self._wire.tensor(hidden).flatten(0, 1))
        output = self._worker.execute_stage(plan, arrive)
        if isinstance(output, dict):
            return self._wire.payload(torch.stack([output[name] for name in BETWEEN_STAGES]))
        sampled = self._worker.sample_tokens(None) if output is None else output
        if isinstance(sampled, AsyncModelRunnerOutput):
            sampled.get_output()
        return None
        yield

    def _with_cache(self) -> Planner:
        """As vLLM's engine process does it for all stages."""
        worker, config = self._worker, self._config
        specs = list(self._specs.values())
        worker.set_kv_cache_layout(
            resolve_kv_cache_layout(config, [worker.get_supported_kv_cache_layouts()], specs).name
        )
        [cache] = get_kv_cache_configs(config, [self._specs], [worker.determine_available_memory()])
        cache.kv_cache_layout = config.cache_config.kv_cache_layout
        config.cache_config.num_gpu_blocks = cache.num_blocks
        worker.initialize_from_config([cache] * config.parallel_config.world_size)
        worker.compile_or_warm_up_model()
        sizes = [group.kv_cache_spec.block_size for group in cache.kv_cache_groups]
        return Planner(sizes, cache.num_blocks)


class Planner:
    """What vLLM's scheduler would send, for batches that follow no others: each request comes anew, with what it has cached, to
    the first blocks of the cache, and is gone with the next batch. `block_sizes`: tokens, by group of layers."""

    def __init__(self, block_sizes: Sequence[int], blocks: int) -> None:
        self._block_sizes = block_sizes
        self._blocks = blocks
        self._numbers = count()
        self._last: set[str] = set()

    def plan(self, sequences: Sequence[ServeSequence]) -> SchedulerOutput:
        """Raises DeviceMemoryError for more than the cache holds."""
        free = iter(range(1, self._blocks))  # vLLM's own block 0 holds nothing
        new = [self._new(sequence, free) for sequence in sequences]
        gone, self._last = self._last, {request.req_id for request in new}
        lengths = {request.req_id: sequence.length for request, sequence in zip(new, sequences, strict=True)}
        return SchedulerOutput(
            scheduled_new_reqs=new,
            scheduled_cached_reqs=CachedRequestData.make_empty(),
            num_scheduled_tokens=lengths,
            total_num_scheduled_tokens=sum(lengths.values()),
            scheduled_spec_decode_tokens={},
            scheduled_encoder_inputs={},
            num_common_prefix_blocks=[0] * len(self._block_sizes),
            finished_req_ids=gone,
            free_encoder_mm_hashes=[],
        )

    def _new(self, sequence: ServeSequence, free: Iterator[int]) -> NewRequestData:
        tokens = [*([0] * sequence.cached), *sequence.tokens]
        try:
            blocks = tuple([next(free) for _ in range(-(-(len(tokens) + 1) // size))] for size in self._block_sizes)
        except StopIteration:
            raise DeviceMemoryError(f"vLLM's KV cache of {self._blocks} blocks is too small") from None
        return NewRequestData(
            req_id=str(next(self._numbers)),
            prompt_token_ids=tokens,
            mm_features=[],
            sampling_params=SamplingParams(
                temperature=0.0,
                max_tokens=1,
                prompt_logprobs=None if sequence.generate else 0,
                output_kind=RequestOutputKind.FINAL_ONLY,
            ),
            pooling_params=None,
            block_ids=blocks,
            num_computed_tokens=sequence.cached,
            lora_request=None,
        )
