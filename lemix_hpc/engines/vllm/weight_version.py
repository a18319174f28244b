"""Which weight version the engine's next batch runs under.

vLLM's scheduler, which salts the prefix cache by version, and the first stage, which has a new version ready, agree here:
a version changes between two batches, never between the scheduling of a batch and its departure.
"""

from __future__ import annotations

from threading import Lock


class WeightClock:
    """Lives in the engine process. `begin` and `departed` enclose one batch; `advance` waits for what lies between."""

    def __init__(self, version: int = 0) -> None:
        """`version`: of the weights that the node starts with."""
        self._batch = Lock()
        self._version = version

    def begin(self) -> int:
        """A batch is being scheduled: the version that it will run under, until it has departed."""
        self._batch.acquire()
        return self._version

    def departed(self) -> None:
        """The batch is on its way to the first stage, or there is none after all."""
        self._batch.release()

    def __enter__(self) -> WeightClock:
        """Hold all batches back, to send word of a new version in order with them."""
        self._batch.acquire()
        return self

    def advance(self) -> int:
        """The next version; only while batches are held back."""
        self._version += 1
        return self._version

    def __exit__(self, *_: object) -> None:
        self._batch.release()
