"""What ends a command from outside: Ctrl-C, a TERM, a terminal that is closed."""

from __future__ import annotations

import signal
from types import FrameType


class Interrupts:
    """Ctrl-C, a TERM and a closed terminal, held back while a run is being started: a half started run would be left behind."""

    def __init__(self) -> None:
        self._came = False
        # What is ignored stays so, as HUP under nohup.
        self._numbers = [
            number
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN
        ]
        for number in self._numbers:
            signal.signal(number, self._hold)

    def _hold(self, _number: int, _frame: FrameType | None) -> None:
        self._came = True

    def release(self) -> None:
        """From now on each raises KeyboardInterrupt; at once, if one was held back."""
        for number in self._numbers:
            signal.signal(number, signal.default_int_handler)
        came, self._came = self._came, False
        if came:
            raise KeyboardInterrupt
