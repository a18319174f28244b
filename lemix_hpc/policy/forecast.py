"""The execution-path forecast of one node (LeMix, Algorithm 1, with the repairs of docs/policy.md).

For a task released at r, with pfe_s the forward end of the task assigned before it on stage s:

    fb_0 = max(r, pfe_0);   fb_s = max(fe_{s-1}, pfe_s);   fe_s = fb_s + F_s
    for every unfinished training task p with backward [bb_p,s, be_p,s] and fe_s > bb_p,s:
        fb_s = max(fb_s, be_p,s)                                     (far dependency)
    training:  bb_{S-1} = fe_{S-1};  be_s = bb_s + B_s;  bb_{s-1} = be_s

Real start and end times replace predicted ones, and everything behind them is forecast anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Path:
    """Begin and end of a task's forward, and for training of its backward, on every stage, in seconds.

    `idleness` is the idle stage time that the task adds in front of itself: the paper's II.
    """

    release: float
    fb: tuple[float, ...]
    fe: tuple[float, ...]
    bb: tuple[float, ...] = ()
    be: tuple[float, ...] = ()
    idleness: float = 0.0

    @property
    def response(self) -> float:
        return self.fe[-1] - self.release

    @property
    def completion(self) -> float:
        """When the task is through: end of the forward on the last stage, or of the backward on the first."""
        return self.be[0] if self.be else self.fe[-1]


@dataclass(slots=True)
class _Entry:
    task: int
    release: float
    forward: tuple[float, ...]
    backward: tuple[float, ...]
    path: Path
    forward_seen: dict[int, tuple[float, float]] = field(default_factory=dict)
    backward_seen: dict[int, tuple[float, float]] = field(default_factory=dict)

    def done(self, stages: int) -> bool:
        return len(self.backward_seen if self.backward else self.forward_seen) == stages


class NodeForecast:
    """What is expected of one node: the tasks assigned to it, in order, and the path of each."""

    def __init__(self, stages: int) -> None:
        self._stages = stages
        self._entries: dict[int, _Entry] = {}
        self._settled = [0.0] * stages
        self._used = False
        self._stale = False

    def predict(self, release: float, forward: Sequence[float], backward: Sequence[float] = ()) -> Path:
        """The path that a task would take if it were assigned now. `backward` is empty for serving."""
        self._refresh()
        previous = self._last_ends()
        return self._walk(release, tuple(forward), tuple(backward), previous, list(self._entries.values()))

    def assign(self, task: int, path: Path, forward: Sequence[float], backward: Sequence[float] = ()) -> None:
        """Take a task whose path was predicted just before."""
        self._entries[task] = _Entry(task, path.release, tuple(forward), tuple(backward), path)
        self._used = True

    def observe(self, task: int, stage: int, start: float, end: float, *, backward: bool) -> None:
        """A stage has run a task's forward or backward from `start` to `end`; later forecasts follow from it."""
        entry = self._entries.get(task)
        if entry is None:
            return
        (entry.backward_seen if backward else entry.forward_seen)[stage] = (start, end)
        self._stale = True

    def forget(self, task: int) -> None:
        """The task is finished or lost: it is expected nowhere any more."""
        entry = self._entries.pop(task, None)
        if entry is not None:
            self._settle(entry)
            self._stale = True

    def path(self, task: int) -> Path | None:
        """The current forecast of an unfinished task."""
        self._refresh()
        entry = self._entries.get(task)
        return entry.path if entry else None

    def _last_ends(self) -> list[float]:
        if not self._entries:
            return list(self._settled)
        last = next(reversed(self._entries.values())).path.fe
        return [max(settled, end) for settled, end in zip(self._settled, last, strict=True)]

    def _settle(self, entry: _Entry) -> None:
        for seen in (entry.forward_seen, entry.backward_seen):
            for stage, (_, end) in seen.items():
                self._settled[stage] = max(self._settled[stage], end)

    def _refresh(self) -> None:
        """Forecast every unfinished task anew, in order, from what really happened."""
        if not self._stale:
            return
        self._stale = False
        for entry in [e for e in self._entries.values() if e.done(self._stages)]:
            self._settle(entry)
            del self._entries[entry.task]
        previous = list(self._settled)
        before: list[_Entry] = []
        for entry in self._entries.values():
            entry.path = self._walk(entry.release, entry.forward, entry.backward, previous, before, entry)
            previous = [max(a, b) for a, b in zip(previous, entry.path.fe, strict=True)]
            before.append(entry)

    def _walk(
        self,
        release: float,
        forward: tuple[float, ...],
        backward: tuple[float, ...],
        previous: list[float],
        before: list[_Entry],
        real: _Entry | None = None,
    ) -> Path:
        fb, fe, idleness = [], [], 0.0
        ready = release
        for s in range(self._stages):
            seen = real.forward_seen.get(s) if real else None
            if seen is not None:
                begin, end = seen
            else:
                begin, busy = self._forward_begin(s, max(ready, previous[s]), forward[s], previous[s], before)
                end = begin + forward[s]
                idleness += max(0.0, begin - previous[s] - busy) if self._used else 0.0
            fb.append(begin)
            fe.append(end)
            ready = end
        if not backward:
            return Path(release, tuple(fb), tuple(fe), idleness=idleness)
        bb, be = self._backward_walk(fe, backward, real)
        return Path(release, tuple(fb), tuple(fe), bb, be, idleness)

    @staticmethod
    def _forward_begin(
        s: int, begin: float, duration: float, previous_end: float, before: list[_Entry]
    ) -> tuple[float, float]:
        """Begin of a forward that must not overlap the backwards already expected on stage s, and their busy time."""
        busy = 0.0
        for entry in before:
            if not entry.backward or s in entry.backward_seen:
                continue
            if begin + duration > entry.path.bb[s]:
                begin = max(begin, entry.path.be[s])
                if previous_end <= entry.path.bb[s]:
                    busy += entry.backward[s]
        return begin, busy

    @staticmethod
    def _backward_walk(
        fe: list[float], backward: tuple[float, ...], real: _Entry | None
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        stages = len(fe)
        bb, be = [0.0] * stages, [0.0] * stages
        ready = fe[-1]
        for s in reversed(range(stages)):
            seen = real.backward_seen.get(s) if real else None
            bb[s], be[s] = seen if seen is not None else (ready, ready + backward[s])
            ready = be[s]
        return tuple(bb), tuple(be)
