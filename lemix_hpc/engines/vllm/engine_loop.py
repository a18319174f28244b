"""vLLM's loop in the engine process: while the next batch is held, it waits for what comes, and no longer than for that batch.

As it is, the loop waits only while there is no request at all, and while batches are on their way for the first of them alone.
"""

from __future__ import annotations

import math
import os
import queue
from typing import Any


def wait_until_due(loop: type[Any]) -> None:
    """From now on vLLM's `EngineCoreProc`, the class of the `loop`, asks its scheduler how long the next batch is held.

    New requests, aborts, pauses, orders of the leader and the end all come through its queue, and what the stages have to say
    through the executor.
    """
    run, take_in = loop.run_busy_loop, loop._process_input_queue

    def run_with_a_bell(engine: Any) -> None:
        engine.bell = ring_on_put(engine.input_queue)
        run(engine)

    def wait_and_take_in(engine: Any) -> None:
        while engine.is_running() and (held := _held(engine)) > 0.0:
            engine.model_executor.wait_for_stages(engine.bell, held)
            while not engine.input_queue.empty():
                engine._handle_client_request(*engine.input_queue.get_nowait())
        take_in(engine)

    loop.run_busy_loop, loop._process_input_queue = run_with_a_bell, wait_and_take_in


def ring_on_put(orders: queue.Queue[Any]) -> int:
    """A file descriptor that can be read from when something has come into this queue since it was read."""
    bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    put = orders.put_nowait

    def put_and_ring(order: Any) -> None:
        put(order)
        os.eventfd_write(bell, 1)

    orders.put_nowait = put_and_ring  # type: ignore[assignment, method-assign]
    return bell


def _held(engine: Any) -> float:
    """Seconds for which there is nothing to do but wait, 0: there is, or vLLM's own loop waits by itself."""
    if not engine.input_queue.empty() or engine.scheduler.has_requests():
        return 0.0
    held: float = engine.scheduler.held_for()
    if not engine.batch_queue:
        return held
    oldest = engine.batch_queue[-1][0]
    return 0.0 if oldest.done() else min(held or math.inf, engine.model_executor.patience_for(oldest))
