"""A stage's end of the way to vLLM's engine process."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lemix_hpc.engines.protocol import EngineOrder, PermissionToCommit
from lemix_hpc.engines.vllm.engine_ipc import (
    Ask,
    Bye,
    Call,
    Output,
    Passed,
    Reply,
    Run,
    Sample,
    arrived,
    listen,
    receive,
    send,
)


class StageSocket:
    """Brings calls to the worker, batches for the first stage, and permission to commit; takes outputs back.

    Made once the engine has connected. `samples`: what bounds the tokens of the coming batches.
    """

    def __init__(self, directory: Path, stage: int) -> None:
        self._stage = stage
        self._listener = listen(directory, stage)
        self._engine = self._listener.accept()
        self._asking: Connection | None = None
        self.samples: deque[Any] = deque()
        self.closed = False

    @property
    def watched(self) -> Sequence[int]:
        return [] if self.closed else [self._engine.fileno()]

    def poll(self, perform: Callable[[Call], Any]) -> list[EngineOrder]:
        """Perform the calls that have come, keep what bounds samples, and return batches and leaves in order."""
        orders: list[EngineOrder] = []
        for message in self._arrived():
            match message:
                case Call():
                    send(self._engine, _performed(perform, message))
                case Run(batch):
                    orders.append(batch)
                case Sample(grammar):
                    self.samples.append(grammar)
                case PermissionToCommit():
                    orders.append(message)
                case Bye():
                    self.closed = True
                    break
        return orders

    def _arrived(self) -> Iterator[Any]:
        if self.closed:
            return
        try:
            yield from arrived(self._engine)
        except (EOFError, OSError):
            raise RuntimeError("vLLM's engine process has ended; the leader's log says why") from None

    def answer(self, output: Any) -> None:
        """The output of a batch, from the last stage."""
        send(self._engine, Output(output))

    def passed(self) -> None:
        """From the first stage: a batch is on its way to the next one."""
        send(self._engine, Passed())

    def ask(self) -> None:
        """From the first stage: a new weight version is ready here and on all stages behind."""
        if self._asking is None:
            self._asking = self._listener.accept()
        send(self._asking, Ask())

    def wait_for_start(self, timeout: float) -> Call:
        """The engine's first call. Raises TimeoutError if it does not come."""
        if not self._engine.poll(timeout):
            raise TimeoutError(f"vLLM's engine did not start stage {self._stage} within {timeout:g} s")
        call = receive(self._engine)
        assert isinstance(call, Call) and call.method == "start", call
        return call

    def started(self) -> None:
        send(self._engine, Reply(None))

    def close(self) -> None:
        self._engine.close()
        if self._asking is not None:
            self._asking.close()
        # The leader may have cleared the directory away already, and the socket with it.
        with contextlib.suppress(FileNotFoundError):
            self._listener.close()


def _performed(perform: Callable[[Call], Any], call: Call) -> Reply:
    try:
        return Reply(perform(call))
    except Exception as error:  # noqa: BLE001  whatever a worker raises belongs to the engine that called it
        return Reply(None, f"{type(error).__name__}: {error}")
