"""Who has not been heard of for too long."""

from __future__ import annotations

from collections.abc import Callable

from lemix_hpc.runtime.transport.heartbeat import PER_TIMEOUT


class Watch:
    """Over all ranks that have sent a sign of life. `role` names one in words; `now` in seconds."""

    def __init__(self, timeout: float, now: Callable[[], float], role: Callable[[int], str]) -> None:
        self._timeout = timeout
        self._now = now
        self._role = role
        self._looked = now()
        self._heard: dict[int, float] = {}

    def heard(self, rank: int) -> None:
        """A sign of life has come."""
        self._heard[rank] = self._now()

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
        rank = min(self._heard, key=self._heard.__getitem__, default=None)
        if rank is not None and now - self._heard[rank] > self._timeout:
            raise TimeoutError(
                f"rank {rank} ({self._role(rank)}) has not been heard of for {self._timeout:g} s (engine.timeout_s); its log "
                "may say where it hangs"
            )
