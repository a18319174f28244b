"""Our scheduler in vLLM's engine, in a process of its own: its prefix cache while the weights change under it, batches that
wait until they are due, and batch requests: `DIRECTORY`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from lemix_hpc.engines.vllm.engine_pace import EnginePace
from lemix_hpc.engines.vllm.environment import prepare
from lemix_hpc.engines.vllm.priority import is_batch, priority_of
from lemix_hpc.engines.vllm.weight_version import WeightClock
from lemix_hpc.policy.pacing import FIRST_MARGIN, PASS_SHARE
from lemix_hpc.workload.byte_level import byte_level_tokenizer
from tests.engines.vllm.conftest import hugging_face
from tests.runtime.leader.test_pacer import PASS, TPOT, TTFT, keep_pace

prepare()

from vllm import LLM, SamplingParams  # noqa: E402  told how to behave before it is imported
from vllm.v1.executor.uniproc_executor import UniProcExecutor  # noqa: E402

PROMPT = torch.randint(0, 257, (100,), generator=torch.Generator().manual_seed(1)).tolist()

PATIENT = {f"p{number}": [number, *PROMPT[:20]] for number in range(1, 6)}


class ClockedExecutor(UniProcExecutor):  # type: ignore[misc]
    """vLLM's own executor of one process, telling the clock of batches as `StageExecutor` does."""

    def _init_executor(self) -> None:
        """`now`: the time by which batches are due [s]."""
        super()._init_executor()
        self.now = 0.0
        settings = self.vllm_config.additional_config
        settings["weight_clock"], settings["pace"] = WeightClock(), EnginePace(1, lambda: self.now)

    def execute_model(self, plan: Any, *args: Any, **kwargs: Any) -> Any:
        """`partial`: whose prompts go on after the last batch."""
        self.vllm_config.additional_config["weight_clock"].departed()
        self.partial = {name.partition("-")[0] for name in plan.partial}
        return super().execute_model(plan, *args, **kwargs)


class Engine:
    def __init__(self, directory: Path) -> None:
        self.llm = LLM(
            str(directory),
            dtype="float32",
            enforce_eager=True,
            kv_cache_memory_bytes=64 << 20,
            max_num_seqs=4,
            block_size=32,
            worker_cls="lemix_hpc.engines.vllm.worker.StageWorker",
            scheduler_cls="lemix_hpc.engines.vllm.scheduler.VersionedScheduler",
            distributed_executor_backend=ClockedExecutor,
            async_scheduling=False,
            enable_prefix_caching=True,
            scheduling_policy="priority",
        )
        self._noise = torch.Generator().manual_seed(4)
        core = self.llm.llm_engine.engine_core.engine_core
        self.clock: WeightClock = core.vllm_config.additional_config["weight_clock"]
        self.model: Any = core.model_executor.driver_worker.worker.get_model()

    def change_weights(self, *, told: bool = True) -> None:
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=self._noise), alpha=0.02)
        if told:
            with self.clock:
                self.clock.advance()

    def answer(self, prompt: list[int] = PROMPT, salt: str | None = None) -> tuple[int, float]:
        """How many tokens came from the cache, and the log-likelihood of the next token."""
        request: dict[str, Any] = {"prompt_token_ids": prompt}
        if salt is not None:
            request["cache_salt"] = salt
        sampling = SamplingParams(max_tokens=1, temperature=0.0, logprobs=0)
        (output,) = self.llm.generate([request], sampling, use_tqdm=False)
        (row,) = output.outputs[0].logprobs
        return output.num_cached_tokens or 0, next(iter(row.values())).logprob

    def tokens_of(self, prompt: list[int], output: int) -> list[int]:
        """An answer without pace, in one go."""
        sampling = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
        (answer,) = self.llm.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
        return list(answer.outputs[0].token_ids)


def check_blocks_are_found_under_their_own_version_alone(engine: Engine) -> None:
    fresh, first = engine.answer()
    again, second = engine.answer()
    assert (fresh, again) == (0, 96), (fresh, again)
    assert abs(first - second) < 1e-5
    engine.change_weights()
    cached, changed = engine.answer()
    assert cached == 0
    assert abs(changed - first) > 1e-2, "the weights have changed what is served"
    assert engine.answer()[0] == 96
    own, _ = engine.answer(salt="a client's own")
    assert own == 0, "salts of clients still keep them apart"
    assert engine.answer(salt="a client's own")[0] == 96


def check_the_cache_would_be_stale_without_versions(engine: Engine) -> None:
    engine.answer()
    engine.change_weights(told=False)
    cached, stale = engine.answer()
    assert cached == 96
    with engine.clock:
        engine.clock.advance()
    fresh, right = engine.answer()
    assert fresh == 0
    assert abs(stale - right) > 1e-2, "what the version in the hash prevents"


def check_a_request_that_spans_versions_leaves_no_blocks(engine: Engine) -> None:
    prompt = [7, *PROMPT]
    core = engine.llm.llm_engine
    sampling = SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True)
    core.add_request("spanning", {"prompt_token_ids": prompt}, sampling)
    outputs: list[Any] = []
    for _ in range(30):
        outputs += core.step()
    engine.change_weights()
    while core.has_unfinished_requests():
        outputs += core.step()
    versions = outputs[-1].kv_transfer_params["weight_versions"]
    assert versions[1] == versions[0] + 1
    whole = prompt + list(outputs[-1].outputs[0].token_ids)
    cached, mixed = engine.answer(whole)
    assert cached == 0, "neither version computed this"
    reset = engine.llm.reset_prefix_cache()
    assert reset
    assert abs(engine.answer(whole)[1] - mixed) < 1e-5


def check_batches_wait_until_they_are_due(engine: Engine) -> None:
    core, per_token = engine.llm.llm_engine, 1e-3
    executor = core.engine_core.engine_core.model_executor
    scheduler = core.engine_core.engine_core.scheduler
    order = keep_pace(per_token)
    core.vllm_config.additional_config["pace"].keep_pace(order.ttft, order.tpot, order.coefficients, order.batch_share)
    most = round((PASS_SHARE * TPOT - PASS) / per_token)
    sampling = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)

    def step() -> dict[str, int]:
        """How many tokens of the answers are there, after a step of the engine that can have found nothing to do."""
        for output in core.step():
            tokens[output.request_id.partition("-")[0]] = len(output.outputs[0].token_ids)
        return tokens

    tokens: dict[str, int] = {}
    core.add_request("first", {"prompt_token_ids": PROMPT[:10]}, sampling)
    assert step() == {} and not scheduler.has_requests(), "it is held"
    executor.now = 0.5 * TTFT
    core.add_request("second", {"prompt_token_ids": [9, *PROMPT[: most + 9]]}, sampling)
    assert step() == {}
    executor.now = TTFT
    assert step() == {"first": 1}, "the second one's prompt is cut"
    assert scheduler.running[1].num_computed_tokens == most - 10 and executor.partial == {"second"}
    executor.now += PASS
    assert step() == {"first": 2, "second": 1} and executor.partial == set()
    assert step() == {"first": 3, "second": 2}, "both are aimed at a margin before their deadlines"
    assert step() == {"first": 3, "second": 2}, "there is credit now"
    executor.now += TPOT
    assert step() == {"first": 3, "second": 3}
    core.add_request("third", {"prompt_token_ids": PROMPT[:10]}, sampling)
    assert scheduler.held_for() > TTFT - PASS - 10 * per_token - (FIRST_MARGIN + 2) * TPOT
    core.engine_core.engine_core.pause_scheduler("keep", clear_cache=False)
    assert scheduler.held_for() == 0.0, "whoever pauses the engine does not wait"
    core.engine_core.engine_core.resume_scheduler()
    core.abort_request(["third"])
    assert scheduler.has_requests(), "the workers are told"
    step()
    assert not scheduler.has_requests()


def check_batch_requests_fill_time_and_make_way(engine: Engine, alone: dict[str, list[int]]) -> None:
    """There are four places for requests. `alone`: the answers of the batch requests where nothing else is there."""
    core = engine.llm.llm_engine
    pace: EnginePace = core.vllm_config.additional_config["pace"]
    executor = core.engine_core.engine_core.model_executor
    scheduler = core.engine_core.engine_core.scheduler
    tokens: dict[str, list[int]] = {}

    def add(name: str, prompt: list[int], output: int, promoted: float | None = None) -> None:
        sampling = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
        priority = priority_of(promoted or 0.0, patient=promoted is not None)
        core.add_request(name, {"prompt_token_ids": prompt}, sampling, priority=priority)

    def step() -> list[str]:
        """Whose tokens came."""
        before = {name: len(of) for name, of in tokens.items()}
        for output in core.step():
            tokens[output.request_id.partition("-")[0]] = list(output.outputs[0].token_ids)
        return sorted(name for name, of in tokens.items() if len(of) > before.get(name, 0))

    def running() -> list[str]:
        return sorted(request.request_id.partition("-")[0] for request in scheduler.running)

    def start_again() -> None:
        order = keep_pace(1e-3)
        pace.keep_pace(order.ttft, order.tpot, order.coefficients, order.batch_share)

    start_again()
    later = executor.now + 1e6
    for number, (name, prompt) in enumerate(PATIENT.items()):
        add(name, prompt, 12, promoted=later + number)
    assert step() == [] and scheduler.get_num_unfinished_requests() == 5, "they are held, and counted"
    pace.trained(0.2)
    assert step() == ["p1", "p2", "p3"], "what fits into a pass"
    assert step() == ["p1", "p2", "p3", "p4"], "all places are taken"
    add("a", PROMPT[:10], 4)
    pace.trained(1.0)
    assert step() == ["p1", "p2", "p3", "p4"], "it is not due, and they are owed more"
    executor.now += TTFT - FIRST_MARGIN * TPOT
    assert step() == ["a", "p1", "p2", "p3"], "it takes the place of the last one to be promoted"
    assert running() == ["a", "p1", "p2", "p3"]
    for _ in range(200):
        executor.now += 0.5 * TPOT
        pace.trained(0.1)
        step()
        if not core.has_unfinished_requests():
            break
    assert {name: tokens[name] for name in PATIENT} == alone, "whose cache was taken goes on as if nothing had been"
    assert len(tokens["a"]) == 4

    start_again()
    add("held", PATIENT["p1"], 2, promoted=executor.now + 5.0)
    assert step() == [] and 0.0 < scheduler.held_for() <= 5.0
    executor.now += 5.1
    assert step() == ["held"] and not is_batch(scheduler.running[0].priority), "its window is nearly over"
    executor.now += TPOT
    assert step() == ["held"]
    add("gone", PATIENT["p1"], 2, promoted=later)
    assert step() == [] and scheduler.get_num_unfinished_requests() == 1
    core.abort_request(["gone"])
    assert scheduler.get_num_unfinished_requests() == 0 and len(scheduler.waiting) == 0


if __name__ == "__main__":
    hugging_face("llama", tied=False).save_pretrained(sys.argv[1])
    byte_level_tokenizer().save_pretrained(sys.argv[1])
    under_test = Engine(Path(sys.argv[1]))
    check_blocks_are_found_under_their_own_version_alone(under_test)
    check_the_cache_would_be_stale_without_versions(under_test)
    check_a_request_that_spans_versions_leaves_no_blocks(under_test)
    alone = {name: under_test.tokens_of(prompt, 12) for name, prompt in PATIENT.items()}
    check_batches_wait_until_they_are_due(under_test)
    check_batch_requests_fill_time_and_make_way(under_test, alone)
    print("all hold")
