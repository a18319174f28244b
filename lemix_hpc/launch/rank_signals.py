"""What signals mean to the ranks of a run. Slurm and mpiexec send them to all ranks; only the scheduler's rank decides.

The handlers of that rank note what has come, and its loop reads it. The others go on until they are told over messages.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


def leave_to_scheduler() -> None:
    """Ignore them, here and in processes that are started from here."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def note() -> list[int]:
    """Keep them in the list that is returned, until somebody can act on them."""
    noted: list[int] = []
    _handle(noted.append)
    return noted


def hand_to(heard: Callable[[int], None], noted: list[int]) -> None:
    """From now on they are heard, and those noted before as well."""
    _handle(heard)
    for number in noted:
        heard(number)


def end_at_once() -> None:
    """As a process without handlers does, but for USR2, the warning of a time limit."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _handle(heard: Callable[[int], None]) -> None:
    for number in ENDING:
        signal.signal(number, lambda got, _: heard(got))
