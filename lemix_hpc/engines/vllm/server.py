"""A node's vLLM server: its engine client and web application, in a thread of the leader's process."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.inputs.engine import TokensInput, tokens_input
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.host_files import forget_sockets
from lemix_hpc.engines.vllm import asgi
from lemix_hpc.engines.vllm.args import server_args
from lemix_hpc.engines.vllm.grammar_check import CheckedLLM
from lemix_hpc.engines.vllm.process_guard import shield_children
from lemix_hpc.engines.vllm.request_ids import request_id
from lemix_hpc.engines.vllm.response_versions import as_refusal, with_priority, with_versions
from lemix_hpc.engines.vllm.tracking import Served, Tracker
from lemix_hpc.records.faults import Faults

HEALTH_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine takes requests."""


@dataclass(frozen=True, slots=True)
class ResponsePart:
    """A piece of the answer to a call; see `lemix_hpc.runtime.transport.messages.HttpPart`."""

    task: int
    status: int
    headers: asgi.Headers
    body: bytes
    more: bool


@dataclass(frozen=True, slots=True)
class Done:
    """A task is over. Times in seconds of the run; `nll` and `scored` as in `SequenceResult`."""

    task: int
    first_token: float
    finished: float
    nll: float
    scored: int
    output: list[int]
    versions: tuple[int, int]


Event = Ready | ResponsePart | Done


class NodeServer:
    """Started at once; `poll` brings what has happened. All methods are for the leader's loop alone.

    `meeting` is a directory that the stages share; `weight_version` that of their weights at the start. `wake` is called from
    the thread whenever there is something to poll.
    """

    def __init__(
        self,
        recipe: Recipe,
        meeting: Path,
        now: Callable[[], float],
        wake: Callable[[], None],
        weight_version: int = 0,
    ) -> None:
        self._recipe = recipe
        self._weight_version = weight_version
        self._meeting = meeting
        self._now = now
        self._wake = wake
        self._tracker = Tracker(now)
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._failure: BaseException | None = None
        # The first request that generates is one that nobody waits for. What is compiled for log-probabilities is there then.
        self._warm = False
        self._faults = Faults()
        self._running: dict[int, asyncio.Event] = {}
        self._work: dict[int, Future[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._ready = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="vllm", daemon=True)
        self._thread.start()

    def poll(self) -> list[Event]:
        """Everything that has happened since the last call. Raises what the engine died of."""
        events = [self._events.get() for _ in range(self._events.qsize())]
        # What is still told of a withdrawn task is for nobody.
        events = [event for event in events if isinstance(event, Ready) or event.task in self._work]
        for event in events:
            if isinstance(event, Done):
                del self._work[event.task]
        if self._failure is not None and not events:
            raise RuntimeError(f"vLLM's engine has failed: {self._failure}") from self._failure
        return events

    def generate(
        self, task: int, tokens: list[int], output: int, temperature: float, priority: int, arrival: float
    ) -> None:
        """Generate `output` tokens, or with 0 score the prompt. Ends in a `Done`. It came at `arrival` [s of the run];
        `priority` as in `lemix_hpc.engines.vllm.priority`."""
        prompt = tokens_input(tokens)
        prompt["arrival_time"] = time.time() + arrival - self._now()
        self._start(task, self._generate(task, prompt, output, temperature, priority))

    def call(self, task: int, method: str, path: str, headers: asgi.Headers, body: bytes, priority: int) -> None:
        """Answer an HTTP call. Ends in the last `ResponsePart` and a `Done`."""
        gone = self._running[task] = asyncio.Event()
        self._start(task, self._call(task, gone, method, path, headers, body, priority))

    def abort(self, task: int) -> None:
        """Nobody waits for a call any more; its `Done` still comes."""

        gone = self._running.get(task)
        if gone is not None:
            self._loop.call_soon_threadsafe(gone.set)

    def withdraw(self, tasks: Sequence[int]) -> list[int]:
        """Let go of those that no batch has had yet: nothing more comes of them. Returns which they are."""
        gone = [task for task in tasks if task in self._work and self._tracker.waits(task)]
        for task in gone:
            self._work.pop(task).cancel()
            self._tracker.pop(task)
        return gone

    def run_began(self) -> None:
        """The clock of the run goes."""
        self._order("run_began", self._by_host_clock(0.0))

    def keep_pace(self, ttft: float, tpot: float, coefficients: str, batch_share: float) -> None:
        """Form batches when they are due; see `lemix_hpc.runtime.transport.messages.KeepPace`."""
        self._order("keep_pace", ttft, tpot, coefficients, batch_share)

    def first_stage_idle(self, since: float) -> None:
        """Nothing has run on the first stage `since` then [s of the run], and no training waits there; inf: that is over."""
        self._order("first_stage_idle", self._by_host_clock(since))

    def trained(self, seconds: float) -> None:
        """Stages have trained for so long in all, since this was said last."""
        self._order("trained", seconds)

    def _by_host_clock(self, time_of_run: float) -> float:
        """The engine process is on this host, and knows no time of the run."""
        return time.monotonic() + time_of_run - self._now()

    def _order(self, method: str, *arguments: float | str) -> None:
        """Tell the engine process; it takes orders in their order, between two batches."""
        asyncio.run_coroutine_threadsafe(self._whole(self._tell_engine(method, arguments)), self._loop)

    async def _tell_engine(self, method: str, arguments: tuple[float | str, ...]) -> None:
        await self._llm.collective_rpc(method, args=arguments)

    def close(self) -> None:
        """Stop the engine process, and wait for that. Raises TimeoutError if it does not stop."""
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(self._recipe.engine.timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"vLLM's engine did not stop within {self._recipe.engine.timeout_s:g} s")

    def _start(self, task: int, work: Coroutine[Any, Any, None]) -> None:
        self._tracker.of(task)
        self._work[task] = asyncio.run_coroutine_threadsafe(self._whole(work), self._loop)

    async def _whole(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task; what it does not answer itself ends the run, since its client would wait for ever."""
        try:
            await self._ready.wait()
            await work
        except Exception as error:  # noqa: BLE001  raised again in the leader's loop
            self._fail(error)

    def _run(self) -> None:
        shield_children()
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:  # noqa: BLE001  raised again in the leader's loop
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._wake()

    def _tell(self, event: Event) -> None:
        self._events.put(event)
        self._wake()

    async def _serve(self) -> None:
        args = server_args(self._recipe, self._meeting, self._weight_version)
        async with self._engine(AsyncEngineArgs.from_cli_args(args)) as llm:
            self._llm = llm
            self._tracker.follow(llm)
            tasks = await llm.get_supported_tasks()
            self._app = build_app(args, tasks, llm.model_config)
            await init_app_state(llm, self._app.state, args, tasks)
            # What vLLM's handlers of errors would end. There is nothing to end here: the engine is looked at below.
            self._app.state.server = SimpleNamespace(should_exit=False)
            async with self._app.router.lifespan_context(self._app):
                forget_sockets(self._meeting)
                self._ready.set()
                self._tell(Ready())
                while not self._closing.is_set():
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._closing.wait(), HEALTH_INTERVAL_S)
                    if llm.errored and not self._closing.is_set():
                        raise llm.dead_error

    @contextlib.asynccontextmanager
    async def _engine(self, args: AsyncEngineArgs) -> AsyncIterator[CheckedLLM]:
        config = args.create_engine_config()
        llm = CheckedLLM.from_vllm_config(config, disable_log_stats=args.disable_log_stats)
        try:
            await llm.reset_mm_cache()
            yield llm
        finally:
            llm.shutdown()

    async def _generate(self, task: int, prompt: TokensInput, output: int, temperature: float, priority: int) -> None:
        sampling = SamplingParams(
            max_tokens=max(output, 1),
            ignore_eos=True,
            temperature=temperature,
            seed=self._recipe.seed + task if temperature else None,
            logprobs=None if self._warm or not output else 1,
            prompt_logprobs=None if output else 0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        answer = self._llm.generate(prompt, sampling, request_id(task), priority=priority)
        (last,) = [result async for result in answer]
        self._warm = self._warm or bool(output)
        terms = [] if output else _log_likelihoods(last)
        self._done(task, -math.fsum(terms), len(terms), generated=bool(output))

    async def _call(
        self,
        task: int,
        gone: asyncio.Event,
        method: str,
        path: str,
        headers: asgi.Headers,
        body: bytes,
        priority: int,
    ) -> None:
        served = self._tracker.of(task)
        answered = refused = False

        def respond(status: int, named: asgi.Headers, data: bytes, more: bool) -> None:
            nonlocal answered, refused
            # The end of a stream that is over; an answer that tells of the engine's death: the next attempt answers the call.
            if refused or self._llm.errored:
                return
            answered = True
            if refusal := as_refusal(status, named, data, dead_end=served.dead_end):
                refused, more = True, False
                status, named, data = refusal
            named, data = with_versions(status, named, data, served.versions)
            self._tell(ResponsePart(task, status, named, data, more))

        named = [(name, value) for name, value in headers if name.lower() not in ("x-request-id", "content-length")]
        named.append(("x-request-id", request_id(task)))
        body = with_priority(path, body, priority)
        try:
            await asgi.call(self._app, method, path, named, body, gone, respond)
        except Exception as error:  # noqa: BLE001  an error of one call ends that call; the engine is watched by itself
            if not answered:
                respond(*asgi.BROKEN)
            self._faults.tell(f"vLLM failed in task {task}, {method} {path}", error)
        finally:
            del self._running[task]
        if self._llm.errored:
            raise self._llm.dead_error
        self._done(task, 0.0, 0, generated=True)

    def _done(self, task: int, nll: float, scored: int, *, generated: bool) -> None:
        served: Served = self._tracker.pop(task)
        now = self._now()
        first = now if served.first_token is None else served.first_token
        output = served.output if generated else []
        self._tell(Done(task, first, now, nll, scored, output, served.versions or (-1, -1)))


def _log_likelihoods(output: RequestOutput) -> list[float]:
    """Log-likelihood (nats) of each prompt token after the first."""
    rows = output.prompt_logprobs or []
    return [
        row[token].logprob for token, row in zip(output.prompt_token_ids or [], rows, strict=True) if row is not None
    ]
