"""The engine process ends with its leader and when its leader says so, and by no signal that is meant for the run.

Slurm sends its signals to every process of a step. Blocked ones are inherited, from before Python has started on.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from multiprocessing import resource_tracker

MEANT_FOR_THE_RUN = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGUSR2))
_PR_SET_PDEATHSIG = 1


def shield_children() -> None:
    """Processes that this thread starts from now on do not hear the run's signals; other threads of this one still do."""
    signal.pthread_sigmask(signal.SIG_BLOCK, MEANT_FOR_THE_RUN)
    # It is started with the first process, and unblocks some of them in the thread that does so.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, MEANT_FOR_THE_RUN)


def follow_leader(leader: int) -> None:
    """In a shielded child, whose parent has the pid `leader`: be killed when that ends, and take TERM from nobody else.

    Raises RuntimeError if it has ended already.
    """
    die_with_parent(signal.SIGKILL)
    if os.getppid() != leader:
        raise RuntimeError("the leader's process has ended")
    threading.Thread(target=_obey, args=(leader,), name="signals", daemon=True).start()


def die_with_parent(number: signal.Signals) -> None:
    """Let the kernel send this process a signal when the thread that started it ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def _obey(leader: int) -> None:
    while True:
        sent = signal.sigwaitinfo({signal.SIGTERM})
        handler = signal.getsignal(signal.SIGTERM)
        if sent.si_pid == leader and callable(handler):
            handler(signal.SIGTERM, None)
