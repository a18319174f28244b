"""A line in the log of rank 0 now and then: how far the run is, for those who have its logs alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

from lemix_hpc.records.schema import Progress

EVERY_S = 10.0


class ProgressLog:
    """Knows what it has said: a run in which nothing happens says nothing."""

    def __init__(self) -> None:
        self._due = -math.inf
        self._said = ""

    def tell(self, progress: Progress) -> None:
        """Print a line if one is due and there is news, and in any case when the run is over."""
        if progress.elapsed_s < self._due and progress.state == "running":
            return
        self._due = progress.elapsed_s + EVERY_S
        told = ", ".join(_facts(progress))
        if told and told != self._said:
            print(f"{progress.elapsed_s:.0f} s: {told}", flush=True)
        self._said = told


def _facts(progress: Progress) -> Iterator[str]:
    """What has been done so far; attainment is of the last requests."""
    if progress.received:
        yield f"served {progress.served} of {progress.requests}"
        yield from _within(progress)
    if progress.trained:
        yield f"trained {progress.trained} micro-batches in {progress.steps} steps"
    if progress.loss is not None:
        yield f"loss {progress.loss:.4f}"


def _within(progress: Progress) -> Iterator[str]:
    """The share within all of the recipe's limits in milliseconds; without these, within each multiple of T0."""
    interactive = progress.classes.get("interactive")
    share = None if interactive is None else next(reversed(interactive.attainment.values()), None)
    if share is not None:
        yield f"{share:.1%} within the limits"
    else:
        yield from (f"{share:.1%} within {1e3 * limit:.3g} ms" for limit, share in progress.attainment)
