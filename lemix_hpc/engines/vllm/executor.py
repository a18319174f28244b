"""vLLM's executor, in the engine process: drives the stage ranks of one node.

A batch goes to the first stage alone, which tells the others of it, and travels on with its activations, from rank to rank. The
last stage answers. Only calls that set the workers up go to every stage.
"""

from __future__ import annotations

import math
import os
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import cloudpickle
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.executor.abstract import Executor
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT

from lemix_hpc.engines.protocol import PermissionToCommit, ServeBatch, ServeSequence
from lemix_hpc.engines.vllm.engine_ipc import Ask, Bye, Call, Output, Passed, Reply, Run, Sample, connect, receive, send
from lemix_hpc.engines.vllm.engine_loop import wait_until_due
from lemix_hpc.engines.vllm.engine_pace import ORDERS, EnginePace
from lemix_hpc.engines.vllm.process_guard import follow_leader
from lemix_hpc.engines.vllm.request_ids import task_of
from lemix_hpc.engines.vllm.weight_version import WeightClock

START_TIMEOUT_S = 1800.0
"""Until the first batch: a stage may have to read gigabytes of weights."""


class _Answer(Future):  # type: ignore[type-arg]
    """A future that reads the stages' answers itself while somebody waits for it. `parts`: by stage, as they come.
    `asked`: when the stages were [s of the monotonic clock]."""

    def __init__(self, executor: StageExecutor, what: str, stages: int, single: bool) -> None:
        super().__init__()
        self._executor = executor
        self._single = single
        self._missing = stages
        self._parts: dict[int, Any] = {}
        self.what = what
        self.asked = time.monotonic()

    def result(self, timeout: float | None = None) -> Any:
        self._executor.read_until(self, timeout)
        return super().result(0)

    def add(self, stage: int, value: Any) -> None:
        self._parts[stage] = value
        if len(self._parts) == self._missing:
            ordered = [self._parts[key] for key in sorted(self._parts)]
            self.set_result(ordered[0] if self._single else ordered)


class StageExecutor(Executor):  # type: ignore[misc]
    """`additional_config` has the stages' directory (`stages_at`), the seconds within which they must answer (`timeout_s`), the
    pid of the `leader`, and the version of the weights that the stages start with (`weight_version`)."""

    supports_pp = True

    def _init_executor(self) -> None:
        settings = self.vllm_config.additional_config
        follow_leader(settings["leader"])
        directory, self._timeout = Path(settings["stages_at"]), float(settings["timeout_s"])
        self._stages = self.parallel_config.world_size
        self._patience = START_TIMEOUT_S
        self._links = [connect(directory, stage, START_TIMEOUT_S) for stage in range(self._stages)]
        self._calls: list[deque[_Answer]] = [deque() for _ in self._links]
        self._batches: deque[_Answer] = deque()
        self._numbers = count()
        self._sending = threading.Lock()
        self._failed: str | None = None
        self._on_failure: Callable[[], None] | None = None
        self._closing = False
        self.collective_rpc("start", args=(self.vllm_config,))
        # Only now: the stages have been sent a configuration that can be pickled.
        self._clock = settings["weight_clock"] = WeightClock(settings["weight_version"])
        self._pace = settings["pace"] = EnginePace(self._stages)
        wait_until_due(EngineCoreProc)
        asking = connect(directory, 0, START_TIMEOUT_S)
        threading.Thread(target=self._give_leave, args=(asking,), name="leave", daemon=True).start()

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        non_block: bool = False,
    ) -> Any:
        """Call a method of every stage's worker. Raises RuntimeError with the stage's own words if it fails there.

        It is also how the leader reaches this process: what concerns its pace goes no further.
        """
        if method in ORDERS:
            getattr(self._pace, method)(*args)
            return []
        name = method if isinstance(method, str) else cloudpickle.dumps(method)
        answer = _Answer(self, method if isinstance(method, str) else "a function", self._stages, single=False)
        for stage in range(self._stages):
            self._calls[stage].append(answer)
            self._send(stage, Call(name, args, kwargs or {}))
        return answer if non_block else answer.result(timeout)

    def execute_model(self, scheduler_output: SchedulerOutput, non_block: bool = False) -> Any:
        """Send a batch off. Its output comes from `sample_tokens`; one without tokens only updates the stages."""
        tokens = scheduler_output.total_num_scheduled_tokens
        try:
            self._send(0, Run(self._batch(scheduler_output)))
        finally:
            self._clock.departed()
        if tokens:
            self._patience = self._timeout
        done: Future[Any] = Future()
        done.set_result(None if tokens else EMPTY_MODEL_RUNNER_OUTPUT)
        return done if non_block else done.result()

    def sample_tokens(self, grammar_output: GrammarOutput | None, non_block: bool = False) -> Any:
        """The output of the batch that was sent off last."""
        answer = _Answer(self, "a batch", 1, single=True)
        self._batches.append(answer)
        self._send(self._stages - 1, Sample(grammar_output))
        return answer if non_block else answer.result()

    def check_health(self) -> None:
        if self._failed is not None:
            raise RuntimeError(self._failed)

    def register_failure_callback(self, callback: Callable[[], None]) -> None:
        self._on_failure = callback

    def shutdown(self) -> None:
        """Tell the stages that no more calls come. They go on with what else they do."""
        self._closing = True
        for link in self._links:
            try:
                send(link, Bye())
            except OSError:
                continue  # it has ended already

    def read_until(self, wanted: _Answer, timeout: float | None) -> None:
        """Take in answers until the wanted one is there. Raises TimeoutError if the stages are silent for too long."""
        patience = self._patience if timeout is None else timeout
        while not wanted.done():
            ready = wait(self._links, max(0.0, wanted.asked + patience - time.monotonic()))
            if not ready:
                self._fail(f"no stage answered within {patience:g} s ({wanted.what})")
                raise TimeoutError(self._failed)
            for link in ready:
                assert isinstance(link, Connection), "only connections were waited for"
                self._read(link)

    def wait_for_stages(self, bell: int, seconds: float) -> None:
        """Wait until a stage has something to say, and take it in, or `bell` rings, or so many seconds are over."""
        for link in wait([*self._links, bell], None if seconds == math.inf else seconds):
            if isinstance(link, Connection):
                self._read(link)
            else:
                os.eventfd_read(bell)

    def patience_for(self, answer: Future[Any]) -> float:
        """Seconds for which the stages may still be silent until an answer comes."""
        asked = answer.asked if isinstance(answer, _Answer) else -math.inf
        return max(0.0, asked + self._patience - time.monotonic())

    def _read(self, link: Connection) -> None:
        stage = self._links.index(link)
        try:
            message = receive(link)
        except (EOFError, OSError):
            self._fail(f"stage {stage} has ended")
            raise RuntimeError(self._failed) from None
        match message:
            case Output(value):
                self._batches.popleft().add(stage, value)
            case Passed():
                self._pace.left_first_stage()
            case Reply(value, None):
                self._calls[stage].popleft().add(stage, value)
            case Reply(_, error):
                call = self._calls[stage].popleft()
                if not call.done():  # the first stage that fails gives the reason
                    call.set_exception(RuntimeError(f"stage {stage}, {call.what}: {error}"))

    def _send(self, stage: int, message: Any) -> None:
        with self._sending:
            send(self._links[stage], message)

    def _batch(self, plan: SchedulerOutput) -> ServeBatch:
        """The batch in our terms, for the stages' order and reports, around vLLM's own."""
        cached = dict(
            zip(plan.scheduled_cached_reqs.req_ids, plan.scheduled_cached_reqs.num_computed_tokens, strict=True)
        )
        cached |= {new.req_id: new.num_computed_tokens for new in plan.scheduled_new_reqs}
        sequences = [
            ServeSequence(task_of(request), length, cached[request], True, [], request in plan.partial)
            for request, length in plan.num_scheduled_tokens.items()
        ]
        return ServeBatch(next(self._numbers), sequences, plan=pickle.dumps(plan), version=plan.weight_version)

    def _give_leave(self, asking: Connection) -> None:
        """A thread: the first stage may change the weights between any two batches, also while none is there."""
        try:
            while True:
                assert isinstance(receive(asking), Ask), "nothing else comes here"
                with self._clock:
                    self._clock.advance()
                    self._send(0, PermissionToCommit())
        except (EOFError, OSError):
            if not self._closing:
                self._fail("stage 0 has ended")

    def _fail(self, why: str) -> None:
        self._failed = why
        if self._on_failure is not None:
            self._on_failure()
