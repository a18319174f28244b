"""Grammars that clients send are tried out in another process before vLLM gets them; see `grammar_process`."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Callable
from multiprocessing.connection import Connection
from subprocess import Popen
from typing import Any

from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from lemix_hpc.engines.vllm.grammar_process import READY, start

AT_ONCE = 4
REMEMBERED = 1024


class CheckedLLM(AsyncLLM):  # type: ignore[misc]
    """An engine client that refuses requests whose grammar cannot be compiled, before anything of vLLM looks at it."""

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(vllm_config, *args, **kwargs)
        self.grammars = GrammarCheck(vllm_config)

    async def add_request(self, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(params, SamplingParams) and params.structured_outputs is not None:
            await self.grammars.check(params)
        return await super().add_request(request_id, prompt, params, *args, **kwargs)

    def shutdown(self, timeout: float | None = None) -> None:
        self.grammars.close()
        super().shutdown(timeout)


class GrammarCheck:
    """All methods are for one event loop. The process starts with the first grammar, which takes seconds."""

    def __init__(self, config: Any, start: Callable[[Any], tuple[Connection, Popen[bytes]]] = start) -> None:
        self._config = config
        self._start = start
        self._door: Connection | None = None
        self._process: Popen[bytes] | None = None
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[str]] = {}
        self._ready = asyncio.Event()
        self._at_once = asyncio.Semaphore(AT_ONCE)
        # By what they say; requests with the same grammar share a trial.
        self._verdicts: OrderedDict[bytes, asyncio.Task[str]] = OrderedDict()

    async def check(self, params: SamplingParams) -> None:
        """Raises VLLMValidationError for a grammar that vLLM cannot compile, or only with too much time or memory.

        RuntimeError if the process that knows has ended.
        """
        # What vLLM notes in them itself is no part of a grammar.
        asked = [item for item in vars(params.structured_outputs).items() if not item[0].startswith("_")]
        key = hashlib.sha256(repr(asked).encode("utf-8", "surrogatepass")).digest()
        trial = self._verdicts.get(key)
        if trial is None:
            trial = self._verdicts[key] = asyncio.create_task(self._try(params))
            if len(self._verdicts) > REMEMBERED:
                self._verdicts.popitem(last=False)
        self._verdicts.move_to_end(key)
        try:
            refused = await asyncio.shield(trial)
        except RuntimeError:
            self._verdicts.pop(key, None)
            raise
        if refused:
            raise VLLMValidationError(refused)

    def close(self) -> None:
        """Let the process end."""
        self._hang_up("the engine ends")

    async def _try(self, params: SamplingParams) -> str:
        async with self._at_once:
            if self._door is None:
                self._open()
            await self._ready.wait()
            if self._door is None:
                raise RuntimeError("the process that tries grammars has not started")
            number = next(self._numbers)
            answer = self._asked[number] = asyncio.get_running_loop().create_future()
            self._door.send((number, params))
            refused: str = await answer
            return refused

    def _open(self) -> None:
        self._ready.clear()
        self._door, self._process = self._start(self._config)
        asyncio.get_running_loop().add_reader(self._door.fileno(), self._hear)

    def _hear(self) -> None:
        assert self._door is not None
        try:
            said = self._door.recv()
        except (EOFError, ConnectionResetError):
            self._hang_up("the process that tries grammars has ended")
            return
        if said == READY:
            self._ready.set()
        else:
            number, refused = said
            self._asked.pop(number).set_result(refused)

    def _hang_up(self, why: str) -> None:
        if self._door is None:
            return
        asyncio.get_running_loop().remove_reader(self._door.fileno())
        self._door.close()
        self._door = None
        self._ready.set()
        for answer in self._asked.values():
            answer.set_exception(RuntimeError(why))
        self._asked.clear()
