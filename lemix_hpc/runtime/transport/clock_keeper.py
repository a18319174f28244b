"""Keeps a rank's clock together with the scheduler rank's: the clocks of two hosts may drift apart by seconds in a day."""

from __future__ import annotations

from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Mailbox
from lemix_hpc.runtime.transport.run_clock import RunClock

WORTH_TELLING_S = 1e-3


class ClockKeeper:
    """Signs of life ask what time it is, and the answers come to `mailbox`, which is for nothing else.

    Messages, not a collective call: a rank that is busy for long makes its own answer worse, and nobody else wait.
    """

    def __init__(self, rank: int, clock: RunClock, mailbox: Mailbox) -> None:
        self._rank = rank
        self._clock = clock
        self._mailbox = mailbox
        self._unanswered = 0

    def ask(self) -> m.Alive:
        """What to send to the scheduler rank, at once."""
        self._unanswered += 1
        return m.Alive(self._rank, self._clock.own())

    def look(self) -> None:
        """Call on every turn: set the clock by the answers that have come."""
        if not self._unanswered:
            return
        for mail in self._mailbox.poll():
            heard, answer = self._clock.own(), mail.message
            assert isinstance(answer, m.TimeIs), "nothing else comes here"
            self._unanswered -= 1
            moved = self._clock.told(answer.asked, answer.time, heard)
            if abs(moved) > WORTH_TELLING_S:
                print(f"clock: {1e3 * moved:+.1f} ms, by which it had drifted from rank 0's", flush=True)
