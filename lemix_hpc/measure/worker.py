"""A stage rank while profiling: quiet until the profiler asks for something, one thing at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lemix_hpc.engines.meter import Meter
from lemix_hpc.engines.protocol import Payload
from lemix_hpc.measure.passes import StagePasses
from lemix_hpc.profiling.grid import GridPoint
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.idle_wait import Waiter
from lemix_hpc.runtime.transport.mailbox import Inbox, Mail, Mailbox
from lemix_hpc.runtime.transport.rank_layout import SCHEDULER_RANK, Layout

COPIES = 5
ECHOES = 40
FIRST_ECHOES = 10


class ProfiledStage:
    """Answers each order with `Measured`. `quiet` waits without taking a core from the stage that is being measured, `waiter`
    as in a run. `cache_bytes`: of a token in the KV cache, where the engine knows it, having taken its cache as a whole."""

    def __init__(
        self,
        layout: Layout,
        stage: int,
        passes: StagePasses,
        meter: Meter,
        mailbox: Mailbox,
        buffer: Callable[[int], Any],
        *,
        cache_bytes: float | None = None,
        quiet: Waiter,
        waiter: Waiter,
    ) -> None:
        self._layout = layout
        self._stage = stage
        self._passes = passes
        self._meter = meter
        self._mailbox = mailbox
        self._buffer = buffer
        self._cache_bytes = cache_bytes
        self._quiet = quiet
        self._waiter = waiter

    def run(self) -> None:
        """Tell what memory the stage takes at rest, then do as told until it is over."""
        self._meter.reset_peak()
        self._answer(m.Measured({}, self._meter.peak(), cache_bytes=self._cache_bytes))
        while (mail := self._next(self._quiet)).message != m.Stop():
            self._obey(mail)
        while not self._mailbox.sent_all:
            self._quiet.idle(in_transit=True)

    def _obey(self, mail: Mail) -> None:
        match mail.message:
            case m.MeasurePass(kind, batch, length, context):
                point = GridPoint(kind, batch, length, context)  # type: ignore[arg-type]
                self._answer(self._passes.measure(point))
            case m.MeasureCopy(nbytes):
                self._answer(m.Measured(self._copies(nbytes)))
            case m.MeasureLink(nbytes):
                self._answer(m.Measured({"message": self._lead(self._layout.worker(0, self._stage + 1), nbytes)}))
            case m.Echo():
                self._follow(mail)
            case unknown:
                raise RuntimeError(f"stage {self._stage} got {unknown} while profiling")

    def _copies(self, nbytes: int) -> dict[str, list[float]]:
        self._meter.copy_times(nbytes)
        times = [self._meter.copy_times(nbytes) for _ in range(COPIES)]
        return {direction: [each[direction] for each in times] for direction in times[0]}

    def _lead(self, peer: int, nbytes: int) -> list[float]:
        """Seconds of one way: half of each round trip, without the first ones."""
        payload = Payload((nbytes,), "uint8", self._buffer(nbytes))
        seconds = []
        for _ in range(ECHOES):
            start = time.perf_counter()
            self._mailbox.send(peer, Inbox.STAGE, m.Echo(), payload)
            self._next(self._waiter)
            seconds.append((time.perf_counter() - start) / 2)
        return seconds[FIRST_ECHOES:]

    def _follow(self, mail: Mail) -> None:
        """Send the previous stage's bytes back, and all that come behind the first."""
        self._mailbox.send(mail.source, Inbox.STAGE, m.Echo(), mail.payload)
        for _ in range(ECHOES - 1):
            mail = self._next(self._waiter)
            self._mailbox.send(mail.source, Inbox.STAGE, m.Echo(), mail.payload)

    def _answer(self, measured: m.Measured) -> None:
        self._mailbox.send(SCHEDULER_RANK, Inbox.SCHEDULER, measured)

    def _next(self, waiter: Waiter) -> Mail:
        """The next message. Only one is ever on its way to a stage."""
        waiter.reset()
        while not (arrived := self._mailbox.poll()):
            waiter.idle(in_transit=self._mailbox.in_transit)
        [mail] = arrived
        return mail
