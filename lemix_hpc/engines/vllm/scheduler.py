"""vLLM's scheduler, with weights that change under it, batches that wait until they are due, and classes of requests.

The prefix cache must not mix weight versions: a cached block is found by a hash of its tokens, and here by the version that
computed it too. Requests that wait are hashed under the version of the batch that admits them. A request that runs while
the version changes has keys and values of both, so its further blocks get hashes that nobody can look up.

While a batch is held, there is nothing to do for vLLM's loop (`engine_loop` lets it wait), and requests that come meanwhile
join it. What has finished is told to the stages with the next batch.

Which requests a batch takes follows the policy's rules: `step_plan`. Those that run and are not among them rest for that step,
as vLLM lets its own rest, and those that wait are out of its sight: `class_queue`.
"""

from __future__ import annotations

import os
import time
from typing import Any

from vllm.v1.core.kv_cache_utils import BlockHash
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from lemix_hpc.engines.vllm.class_queue import ClassedQueue
from lemix_hpc.engines.vllm.engine_pace import EnginePace
from lemix_hpc.engines.vllm.priority import is_batch, promoted
from lemix_hpc.engines.vllm.step_plan import StepPlan
from lemix_hpc.engines.vllm.weight_version import WeightClock

VERSIONS = "weight_versions"
"""Where a request's output names the first and last version it saw, in the one free-form field that vLLM hands through."""
_HASH_BYTES = 32


class VersionedScheduler(Scheduler):  # type: ignore[misc]
    """Stamps every batch with its weight version and every output with the versions its request has seen.

    The executor puts the engine's `WeightClock` and `EnginePace` where this class finds them, see `clock_of` and `pace_of`.
    """

    max_num_scheduled_tokens: int  # vLLM's: what a batch may take
    running: list[Request]  # vLLM's: in the order in which they are given tokens

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(vllm_config, *args, **kwargs)
        self._clock = clock_of(vllm_config)
        self._pace = pace_of(vllm_config)
        self.waiting: ClassedQueue = ClassedQueue()
        self._most_tokens = self.max_num_scheduled_tokens
        self._version = 0
        self._first: dict[str, int] = {}
        self._salts: dict[str, tuple[int, str | None]] = {}
        self._hasher: Any = None

    def add_request(self, request: Request) -> None:
        self._hasher = request._block_hasher
        self._pace.arrived(request)
        super().add_request(request)

    def held_for(self) -> float:
        """Seconds for which the next batch waits until it is due, 0 if nothing is held. Whoever pauses vLLM wants it to come
        to an end."""
        if self.pause_state != PauseState.UNPAUSED:
            return 0.0
        self._promote()
        return self._pace.until_due(self.running, self.kv_holding_waiting, self.waiting.interactive, self.waiting.batch)

    def has_requests(self) -> bool:
        """Whether there is something to do now."""
        return super().has_requests() and self.held_for() == 0.0

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """The next batch. The weight version cannot change until the executor has sent it off."""
        version = self._clock.begin()
        try:
            if version != self._version:
                self._version = version
                self._part_from_cache()
            self._follow(self._plan())
            output = super().schedule(throttle_prefills)
        except BaseException:
            self._clock.departed()
            raise
        self._pace.formed(output.num_scheduled_tokens)
        output.weight_version = version
        output.partial = {name for name in output.num_scheduled_tokens if self.requests[name].is_prefill_chunk}
        for request_id in output.num_scheduled_tokens:
            self._first.setdefault(request_id, version)
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        # The batch's own version: others may have been scheduled since, under later ones. Requests that end here are
        # forgotten on the way.
        last = scheduler_output.weight_version
        first = {request_id: self._first.get(request_id, last) for request_id in scheduler_output.num_scheduled_tokens}
        self._pace.passed(scheduler_output.num_scheduled_tokens)
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(scheduler_output, model_runner_output)
        self._pace.counted(scheduler_output.num_scheduled_tokens)
        for of_client in outputs.values():
            for output in of_client.outputs:
                output.kv_transfer_params = {VERSIONS: [first.get(output.request_id, last), last]}
        return outputs

    def _get_local_prefix_cache_hit(self, request: Request) -> Any:
        if self._hasher is not None:
            self._salt(request)
        return super()._get_local_prefix_cache_hit(request)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._first.pop(request.request_id, None)
        self._salts.pop(request.request_id, None)
        self._pace.forget(request.request_id)
        return super()._free_request(request, *args, **kwargs)

    def _promote(self) -> None:
        """Batch requests whose window is nearly over go with the interactive ones from now on."""
        self.waiting.promote(self._pace.nearly_over)
        for request in self.running:
            if self._pace.nearly_over(request):
                request.priority = promoted(request.priority)

    def _plan(self) -> StepPlan | None:
        """What the next batch takes; None: what vLLM likes."""
        self._promote()
        if self.pause_state != PauseState.UNPAUSED:
            return None
        cuts = self.scheduler_config.enable_chunked_prefill
        waiting = self.kv_holding_waiting, self.waiting.interactive, self.waiting.batch
        return self._pace.plan(self.running, *waiting, self._most_tokens, cuts=cuts)

    def _follow(self, plan: StepPlan | None) -> None:
        """Show vLLM what the next batch is to take, and nothing else."""
        self.waiting.show()
        self.max_num_scheduled_tokens = self._most_tokens if plan is None else plan.tokens
        if plan is None:
            return
        # Whose cache was taken does not come back in the same step, for lack of the same memory.
        batch = 0 if self._make_room(plan.prompts) else plan.batch
        self.waiting.show(interactive=not plan.alone, batch=batch)
        # Tokens are given in this order: next ones, the rest of prompts, and new prompts behind.
        self.running.sort(key=lambda request: (_missing(request) != 1, is_batch(request.priority)))
        for request in self.running:
            if request.request_id not in plan.members:
                request.next_decode_eligible_step = self.current_step + 2

    def _make_room(self, prompts: list[Request]) -> bool:
        """Take places and caches from batch requests that these interactive ones need, from the last to be promoted first.
        Returns whether there was need."""
        holders = sorted(request for request in self.running if is_batch(request.priority))
        needed = (
            sum(-(-request.num_tokens // self.block_size) for request in prompts) + len(self.running) - len(holders)
        )
        cache, taken = self.kv_cache_manager, False
        while prompts and holders:
            free = cache.block_pool.get_num_free_blocks() - cache.watermark_blocks
            if free >= needed and self.max_num_active_reqs - len(self.running) >= len(prompts):
                break
            last = holders.pop()
            self.running.remove(last)
            self._preempt_request(last, time.monotonic())
            taken = True
        return taken

    def _salt(self, request: Request) -> None:
        """Hash a request that has nothing computed yet under the present version, beside the salt that its client gave."""
        salted, own = self._salts.get(request.request_id, (None, request.cache_salt))
        if salted == self._version:
            return
        self._salts[request.request_id] = (self._version, own)
        request.cache_salt = f"{self._version}/{own or ''}"
        request._block_hasher = self._hasher
        request.block_hashes = []
        request.update_block_hashes()

    def _part_from_cache(self) -> None:
        """The version has changed: what running requests compute from now on is of no use to others."""
        if self._hasher is None:
            return
        for request in self.running:
            # Blocks up to here were put in the cache with the batches that computed them.
            cached = request.num_computed_tokens // self.hash_block_size
            request._block_hasher = self._unknown_hashes
            request.block_hashes = request.block_hashes[:cached]
            request.update_block_hashes()

    def _unknown_hashes(self, request: Request) -> list[BlockHash]:
        missing = request.num_tokens // self.hash_block_size - len(request.block_hashes)
        return [BlockHash(os.urandom(_HASH_BYTES)) for _ in range(missing)]


def _missing(request: Request) -> int:
    """Tokens that are not computed yet."""
    return int(request.num_tokens - request.num_computed_tokens)


def clock_of(vllm_config: Any) -> WeightClock:
    """The clock that the executor of this engine made."""
    clock: WeightClock = vllm_config.additional_config["weight_clock"]
    return clock


def pace_of(vllm_config: Any) -> EnginePace:
    """The pace that the executor of this engine made."""
    pace: EnginePace = vllm_config.additional_config["pace"]
    return pace
