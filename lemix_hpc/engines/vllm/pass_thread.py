"""A thread for passes of vLLM's model runner that begin before their activations have come.

The runner prepares a batch and runs it in one call. Here that call rests where it first needs the activations, and the stage's
loop goes on meanwhile. Only one of the two threads runs at any time, so nothing is concurrent. What torch keeps for each thread
(inference mode, the current device and stream) stays apart, so that training in between has its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any

Run = Callable[[Callable[[], Any]], Any]
"""A pass: gets what it calls for its activations, and returns its output."""


class _LeftOff(BaseException):
    """Ends a pass whose activations will not come."""


@dataclass(frozen=True, slots=True)
class _Ended:
    output: Any = None
    error: BaseException | None = None


class PassThread:
    """Runs one pass after the other, each in two parts: `start` and `finish`."""

    def __init__(self, enter: Callable[[], None]) -> None:
        """`enter` is called on the thread before its first pass."""
        self._enter = enter
        self._to_pass: SimpleQueue[Any] = SimpleQueue()
        self._to_loop: SimpleQueue[_Ended | None] = SimpleQueue()
        self._ended: _Ended | None = None
        self._open = False
        self._thread = Thread(target=self._run_passes, name="passes", daemon=True)
        self._thread.start()

    def start(self, run: Run) -> None:
        """Begin a pass; returns when it asks for its activations, or has ended without. Raises what it raises."""
        self._to_pass.put(run)
        self._ended = self._to_loop.get()
        if self._ended is not None and self._ended.error is not None:
            raise self._ended.error
        self._open = True

    def finish(self, activations: Any) -> Any:
        """The output of the pass that was started, on these activations. Raises what it raises."""
        assert self._open, "a pass is finished once"
        self._open = False
        ended = self._ended
        if ended is None:
            self._to_pass.put(activations)
            ended = self._to_loop.get()
        assert ended is not None, "a pass asks for its activations once"
        if ended.error is not None:
            raise ended.error
        return ended.output

    def close(self) -> None:
        """End the thread, and a pass that rests there."""
        if self._open and self._ended is None:
            self._to_pass.put(_LeftOff())
            self._to_loop.get()
        self._to_pass.put(None)
        self._thread.join()

    def _run_passes(self) -> None:
        self._enter()
        while (run := self._to_pass.get()) is not None:
            try:
                ended = _Ended(run(self._arrive))
            except BaseException as error:  # noqa: BLE001  it is the loop's, which raises it again
                ended = _Ended(error=error)
            del run
            self._to_loop.put(ended)

    def _arrive(self) -> Any:
        self._to_loop.put(None)
        activations = self._to_pass.get()
        if isinstance(activations, _LeftOff):
            raise activations
        return activations
