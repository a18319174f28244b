"""A rank shows that its loop turns, and hears what time it is; one that hangs leaves in its log where. One that was left behind
ends."""

from __future__ import annotations

import contextlib
import faulthandler
import time
from collections.abc import Callable, Iterator

from lemix_hpc.runtime.transport.clock_keeper import ClockKeeper
from lemix_hpc.runtime.transport.idle_wait import Waiter
from lemix_hpc.runtime.transport.mailbox import Inbox, Mailbox
from lemix_hpc.runtime.transport.rank_layout import SCHEDULER_RANK

PER_TIMEOUT = 4
"""Signs of life in the time after which a rank is given up, at least."""
LONGEST_S = 5.0
"""Between two of them: a rank that was left behind is to end soon."""


class Heartbeat:
    """Call `beat` on every turn of the loop: now and then it sends a sign of life, by `send`.

    When no beat comes for `timeout` seconds, all threads' stacks are written to stderr. A rank that is stopped as a whole
    cannot do that.
    """

    def __init__(self, send: Callable[[], None], timeout: float) -> None:
        self._send = send
        self._timeout = timeout
        self._due = 0.0

    def beat(self) -> None:
        """The loop turns."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + min(self._timeout / PER_TIMEOUT, LONGEST_S)
        faulthandler.dump_traceback_later(self._timeout)
        self._send()


@contextlib.contextmanager
def heartbeats(
    waiter: Waiter, mailbox: Mailbox, keeper: ClockKeeper | None, timeout: float, must_count: Callable[[], None]
) -> Iterator[None]:
    """Meanwhile every turn of a loop that waits by `waiter` is a beat; `mailbox` carries signs of life to the scheduler rank,
    and `keeper` takes its answers. That rank itself has no keeper, and needs no signs.

    `must_count` raises if the attempt was left behind. Each rank looks for itself: it may be cut off from those that know.
    """

    def send() -> None:
        must_count()
        if keeper is not None:
            mailbox.send(SCHEDULER_RANK, Inbox.SCHEDULER, keeper.ask())

    def turn() -> None:
        heart.beat()
        if keeper is not None:
            keeper.look()

    heart = Heartbeat(send, timeout)
    waiter.on_turn(turn)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
