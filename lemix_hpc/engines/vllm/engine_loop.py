"""vLLM's loop in the engine process: while the next batch is held, it waits for what comes, and no longer than for that batch.

As it is, the loop waits only while there is no request at all.
"""

from __future__ import annotations

import queue
from typing import Any


def wait_until_due(loop: type[Any]) -> None:
    """From now on vLLM's `EngineCoreProc`, the class of the `loop`, asks its scheduler how long the next batch is held.

    New requests, aborts, pauses, orders of the leader and the end all come through the queue that it waits on.
    """
    take_in = loop._process_input_queue

    def wait_and_take_in(engine: Any) -> None:
        while engine.is_running() and not engine.has_work() and (held := engine.scheduler.held_for()) > 0.0:
            try:
                order = engine.input_queue.get(timeout=held)
            except queue.Empty:
                continue
            engine._handle_client_request(*order)
        take_in(engine)

    loop._process_input_queue = wait_and_take_in
