"""Why and until when a run ends before its work is done: it was asked to stop, or its time is over.

A drain closes the door, lets what has begun come to its end as far as there is time, and then the run ends as always. A
signal handler only notes the signal; everything else is settled when the scheduler's loop looks.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lemix_hpc.records.attempts import EndReason
from lemix_hpc.runtime.scheduler.allocation import AllocationWatch, JobTime

LOOK_EVERY_S = 1.0
LONGEST_RESERVE_S = 120.0
RESERVE_SHARE = 0.25
"""`auto` keeps this part of the time for the end, and no more than `LONGEST_RESERVE_S`."""
FINISHING_SHARE = 0.5
"""The part of the reserve in which what has begun may finish; the rest is for saving and for the report."""
REPORT_SHARE = 0.1
"""The part of the reserve that is for the report alone."""
EARLY_S = 60.0
"""Slurm may send the signal of a time limit so much earlier than it was asked to."""
SLACK_S = 15.0
KILLED_WITHIN_S = 2.0
"""How long what has begun may go on once Slurm ends the job: it kills what is left within seconds, as the site has set."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The decision to drain. `until`: what has begun may go on so long [s since the epoch]."""

    reason: EndReason
    message: str
    until: float


@dataclass(frozen=True, slots=True)
class Reserve:
    """What is kept of an allocation's time for its end. `given`: in seconds, or `auto`; `began`: since the epoch."""

    given: float | Literal["auto"]
    began: float

    def seconds(self, end: float) -> float:
        """Of an allocation that ends then [s since the epoch]."""
        if self.given == "auto":
            return min(LONGEST_RESERVE_S, max(0.0, end - self.began) * RESERVE_SHARE)
        return self.given

    def drain_at(self, end: float) -> float:
        """When to close the door [s since the epoch]."""
        return end - self.seconds(end)


def signal_lead(given: float | Literal["auto"], limit: float) -> int:
    """How long before a time limit [s] Slurm is asked to send its signal: when the reserve begins, in whole seconds."""
    return max(10, math.ceil(Reserve(given, 0.0).seconds(limit)))


def means_preemption(now: float, end: float, lead: float) -> bool:
    """Whether a USR2 that comes now is no warning of the time limit: that comes `lead` seconds before the end, or a little
    earlier. Without a known end it cannot be told, and is not a preemption. All in seconds since the epoch."""
    return math.isfinite(end) and end - now > lead + EARLY_S + SLACK_S


class EndedEarlyError(Exception):
    """A run is to end before it has begun: nothing has been served or trained."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.message)
        self.ending = ending


class Drain:
    """Looks for a reason to drain. `stop`: the file by which users ask for it; `watch`: over the allocation, if there is one.

    `heard` may be called by a signal handler. `now` gives seconds since the epoch.
    """

    def __init__(
        self,
        stop: Path,
        reserve: float | Literal["auto"],
        watch: AllocationWatch | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._stop = stop
        self._reserve = Reserve(reserve, now())
        self._watch = watch
        self._now = now
        self._looked = -math.inf
        self._signals: set[int] = set()
        self._news = False
        self._killed_at = math.inf
        self.ending: Ending | None = None
        """Once it is settled."""

    @property
    def in_allocation(self) -> bool:
        """Whether there is a real end to keep an eye on."""
        return self._watch is not None

    def give_up(self, message: str) -> None:
        """What the run does is of no use any more."""
        self.ending = self.ending or Ending("diverged", message, self._now() + self._patience)

    def heard(self, number: int) -> None:
        """A signal has come."""
        self._signals.add(number)
        self._news = True

    def look(self) -> Ending | None:
        """Whether to drain, and why. Cheap on most turns: files and times are looked at every second."""
        now = self._now()
        if self._news or now - self._looked >= LOOK_EVERY_S:
            self._ask_slurm_why()
            self._looked = now
            if self._known.ending:
                self._killed_at = min(self._killed_at, now)
            if self.ending is None:
                self.ending = self._reason(now)
        return self.ending

    @property
    def over(self) -> bool:
        """What has begun has had its time."""
        ending = self.look()
        return ending is not None and self._now() >= min(ending.until, self._last_moment)

    @property
    def hopeless(self) -> bool:
        """There is no time to wait for the other ranks: Slurm ends the job, and they may be dead, or is about to."""
        ending, end = self.look(), self._known.end
        last = end - self._reserve.seconds(end) * REPORT_SHARE if ending is not None else math.inf
        return self._now() >= min(last, self._killed_at + 2 * KILLED_WITHIN_S)

    def close(self) -> None:
        """Nobody will look any more."""
        if self._watch is not None:
            self._watch.close()

    @property
    def _known(self) -> JobTime:
        return self._watch.known if self._watch is not None else JobTime()

    @property
    def _last_moment(self) -> float:
        """When what has begun must be over for the sake of what follows."""
        end = self._known.end
        return min(self._killed_at + KILLED_WITHIN_S, end - self._reserve.seconds(end) * (1.0 - FINISHING_SHARE))

    @property
    def _patience(self) -> float:
        """How long what has begun may go on when a run is asked to stop long before its time is over [s]."""
        given = self._reserve.given
        return FINISHING_SHARE * (given if given != "auto" and given > 0 else LONGEST_RESERVE_S)

    def _ask_slurm_why(self) -> None:
        if self._news and self._watch is not None:
            self._watch.look_again()
        self._news = False

    def _reason(self, now: float) -> Ending | None:
        if self._stop.exists():
            return Ending("drained", "asked to stop by `lemix stop`", now + self._patience)
        if self._signals & {signal.SIGTERM, signal.SIGINT}:
            # By a person, or by Slurm, which soon kills what is left: that shows in the job's state.
            return Ending("drained", "asked to stop by a signal", now + self._patience)
        end = self._known.end
        if end < math.inf and now >= self._reserve.drain_at(end):
            return Ending("time-limit", f"{max(0.0, end - now):.0f} s before the time limit", math.inf)
        return self._warned(now, end) if signal.SIGUSR2 in self._signals else None

    def _warned(self, now: float, end: float) -> Ending | None:
        """By USR2: of the time limit, where the reserve says when to begin, or of a preemption."""
        if end == math.inf:
            return Ending("time-limit", "Slurm's warning; when the time is over is not known", now + self._patience)
        if means_preemption(now, end, signal_lead(self._reserve.given, end - self._reserve.began)):
            return Ending("preempted", "Slurm's warning came long before the time limit", now + self._patience)
        return None
