"""What responses consist of: where requests waited, and for how long."""

from __future__ import annotations

from collections import OrderedDict

from lemix_hpc.records.schema import Stretch
from lemix_hpc.report.aggregates.schema import WAITS, Waits
from lemix_hpc.report.recent import MOST, AtHand, Known


class _Worked:
    """Of one request: when its first pass began, and the seconds of its passes of the prompt and for further tokens."""

    __slots__ = ("first", "known", "prompt", "tokens")

    def __init__(self, known: Known, first: float) -> None:
        self.known = known
        self.first = first
        self.prompt = 0.0
        self.tokens = 0.0


class WaitsTally:
    """Takes in all work in the order of its starts. Requests that have had no work for longest count as done when there are
    more than `MOST`. `slow_s`: the slow requests take longer than that [s]."""

    def __init__(self, served: AtHand, slow_s: float) -> None:
        self._served = served
        self._slow_s = slow_s
        self._open: OrderedDict[str, _Worked] = OrderedDict()
        self._sums = {"all requests": [0.0] * len(WAITS), "slowest tenth": [0.0] * len(WAITS)}
        self._counts = dict.fromkeys(self._sums, 0)

    def add(self, stretch: Stretch) -> None:
        """The next work."""
        if stretch.kind != "serve":
            return
        seconds = stretch.end - stretch.start
        for task, known in zip(stretch.members, self._served.of(stretch), strict=True):
            if known is None or not known.finished or known.service != "interactive":
                continue
            worked = self._open.get(task)
            if worked is None:
                worked = self._open[task] = _Worked(known, stretch.start)
                if len(self._open) > MOST:
                    self._close(self._open.popitem(last=False)[1])
            else:
                self._open.move_to_end(task)
            if known.first_token is None or stretch.end <= known.first_token:
                worked.prompt += seconds
            else:
                worked.tokens += seconds

    def waits(self) -> dict[str, Waits]:
        """Of all requests, and of the slow ones; none if there were none."""
        while self._open:
            self._close(self._open.popitem(last=False)[1])
        return {
            name: Waits(tuple(total / self._counts[name] for total in sums), self._counts[name])
            for name, sums in self._sums.items()
            if self._counts[name]
        }

    def _close(self, worked: _Worked) -> None:
        known = worked.known
        if known.ended is None:
            return
        placed = known.arrival if known.placed is None else known.placed
        first_token = known.ended if known.first_token is None else known.first_token
        parts = (
            placed - known.arrival,
            worked.first - placed,
            worked.prompt,
            first_token - worked.first - worked.prompt,
            worked.tokens,
            known.ended - first_token - worked.tokens,
        )
        groups = ["all requests"] + (["slowest tenth"] if known.ended - known.arrival > self._slow_s else [])
        for name in groups:
            sums = self._sums[name]
            for place, part in enumerate(parts):
                # Chunks of a prompt may be on several stages at once, and clocks of hosts differ a little.
                sums[place] += max(0.0, part)
            self._counts[name] += 1
