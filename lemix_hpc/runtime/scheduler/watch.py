"""Who has not been heard of for too long. Who gives a sign of life is told what time it is."""

from __future__ import annotations

import math
from collections.abc import Callable

from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.heartbeat import PER_TIMEOUT
from lemix_hpc.runtime.transport.mailbox import Inbox, Mailbox
from lemix_hpc.runtime.transport.rank_layout import Layout


class Watch:
    """Over all ranks that have sent a sign of life. `now`: the monotonic clock that all ranks go by [s]."""

    def __init__(self, timeout: float, now: Callable[[], float], layout: Layout, mailbox: Mailbox) -> None:
        self._timeout = timeout
        self._now = now
        self._layout = layout
        self._mailbox = mailbox
        self._looked = now()
        self._heard: dict[int, float] = {}
        self._due = -math.inf
        """Until then nobody can have been silent for too long."""

    def heard(self, sign: m.Alive) -> None:
        """A sign of life has come."""
        now = self._heard[sign.rank] = self._now()
        self._mailbox.send(sign.rank, Inbox.CLOCK, m.TimeIs(sign.asked, now))

    def forget(self, rank: int) -> None:
        """A rank has left its loop."""
        self._heard.pop(rank, None)

    def check(self) -> None:
        """Look again, once what has come is taken in. Raises TimeoutError naming the rank that has been silent longest, if that
        is too long."""
        now = self._now()
        away = now - self._looked
        self._looked = now
        if away > self._timeout / PER_TIMEOUT:
            # This process was stopped, or hung: it could hear nobody, which is not their fault.
            self._heard = {rank: since + away for rank, since in self._heard.items()}
        if now <= self._due or not self._heard:
            return
        rank = min(self._heard, key=self._heard.__getitem__)
        self._due = self._heard[rank] + self._timeout
        if now > self._due:
            raise TimeoutError(
                f"rank {rank} ({self._layout.role(rank)}) has not been heard of for {self._timeout:g} s (engine.timeout_s); "
                "its log may say where it hangs"
            )
