"""Whether the part of a trace that a run replays has far fewer requests in a second than the trace.

Some traces begin long before their service was much used: the first day of BurstGPT has a request every few minutes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Self

import numpy as np

from lemix_hpc.config.serving_section import Serving
from lemix_hpc.workload.demand import Demand

if TYPE_CHECKING:
    from lemix_hpc.workload.traces import TraceRow

THIN = 100
"""A window with so many times fewer requests a second than the trace is told."""


class Extent:
    """How many rows a trace has, and from when to when [s of its clock], once they have gone through `of`."""

    def __init__(self) -> None:
        self.count = 0
        self.first, self.last = np.inf, -np.inf

    def of(self, rows: Iterable[TraceRow]) -> Iterator[TraceRow]:
        """The same rows."""
        for row in rows:
            self.count += 1
            self.first, self.last = min(self.first, row.time), max(self.last, row.time)
            yield row

    @classmethod
    def over(cls, rows: Iterable[TraceRow]) -> Self:
        """Of these rows."""
        extent = cls()
        for _ in extent.of(rows):
            pass
        return extent

    @property
    def span(self) -> float:
        """Seconds from the first row to the last."""
        return self.last - self.first


def thin_window(name: str, whole: Extent, serving: Serving, chosen: Demand) -> str | None:
    """A warning if the window is thin and `rate_scale` does not make up for it; None otherwise.

    `chosen`: what is in the window, with times in seconds of the run.
    """
    window = serving.window
    end = whole.span if window.end_s is None else min(window.end_s, whole.span)
    length = end - window.start_s
    if chosen.count == window.limit:
        # What comes behind the last of them is not replayed.
        length = chosen.last_arrival * serving.rate_scale
    if not (length > 0 and whole.span > 0):
        return None
    rate, mean = chosen.count / length, whole.count / whole.span
    if rate * serving.rate_scale * THIN > mean:
        return None
    return (
        f"{name}: the window has {rate:.3g} requests/s, and the whole trace {mean:.3g}, {mean / rate:.0f} times as many. "
        "Set serving.window to a busier part, or raise serving.rate_scale."
    )
