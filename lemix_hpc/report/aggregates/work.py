"""What the stages of a run did, over time and in all."""

from __future__ import annotations

import math

import numpy as np

from lemix_hpc.records.schema import RunFacts, Stretch
from lemix_hpc.report.aggregates.cells import Thinned, TimeCells
from lemix_hpc.report.aggregates.schema import WORK, Array, Bars, Lanes, Place, Versions, WorkKind
from lemix_hpc.report.recent import AtHand, Known

MOST_SHARES = 1 << 13
"""Cells of all lanes together."""
MOST_LANES = 64
MOST_BARS = 2500
CLOSE_UP = 700
"""Stretches of work that are shown as they were where there are more than `MOST_BARS`."""
MOST_VERSIONS = 300


class Work:
    """Takes in the work of all stages in the order of its starts."""

    def __init__(self, facts: RunFacts, served: AtHand) -> None:
        self._served = served
        self._stages = facts.stages
        self._lanes = facts.nodes * facts.stages
        shown = max(1, min(self._lanes, MOST_LANES))
        self._cells: TimeCells[tuple[Place, WorkKind]] = TimeCells(MOST_SHARES // shown)
        self._seconds: dict[Place, dict[WorkKind, float]] = {}
        self._all: list[tuple[Stretch, WorkKind]] = []
        self._came = 0
        self._middle = facts.duration_s / 2
        self._close_up: list[tuple[Stretch, WorkKind]] = []
        self._newest = -math.inf
        self._versions: Thinned[tuple[float, int]] = Thinned(MOST_VERSIONS)
        self._last_version: tuple[float, int] | None = None

    def add(self, stretch: Stretch) -> None:
        """The next work."""
        if stretch.version > self._newest:
            self._newest = stretch.version
            self._last_version = stretch.start, stretch.version
            self._versions.add(self._last_version)
        lane = stretch.node * self._stages + stretch.stage
        if lane >= MOST_LANES:
            return
        kind = self._kind(stretch)
        place = stretch.node, stretch.stage
        of_place = self._seconds.setdefault(place, {})
        of_place[kind] = of_place.get(kind, 0.0) + stretch.end - stretch.start
        self._cells.cover((place, kind), stretch.start, stretch.end)
        self._came += 1
        if self._came <= MOST_BARS:
            self._all.append((stretch, kind))
        if stretch.end >= self._middle and len(self._close_up) < CLOSE_UP:
            self._close_up.append((stretch, kind))

    def lanes(self) -> Lanes | None:
        """None if nothing was done."""
        if not self._came:
            return None
        all_there = self._came <= MOST_BARS
        shares: dict[Place, dict[WorkKind, Array]] = {}
        for place, kind in self._cells.names():
            shares.setdefault(place, {})[kind] = self._cells.sums((place, kind)) / self._cells.width
        return Lanes(
            edges=self._cells.edges,
            shares={place: shares[place] for place in sorted(shares)},
            bars=_bars(self._all if all_there else self._close_up),
            bars_are_all=all_there,
            seconds={place: self._seconds[place] for place in sorted(self._seconds)},
            left_out=max(0, self._lanes - MOST_LANES),
        )

    def versions(self) -> Versions | None:
        """None if there was no second version."""
        kept = list(self._versions.kept)
        if self._last_version is not None and kept[-1] != self._last_version:
            kept.append(self._last_version)
        if len(kept) < 2:
            return None
        times, versions = np.array(kept).T
        return Versions(times, versions)

    def _kind(self, stretch: Stretch) -> WorkKind:
        if stretch.kind != "serve":
            return stretch.kind
        return "prefill" if any(_prefills(known, stretch) for known in self._served.of(stretch)) else "decode"


def _prefills(known: Known | None, stretch: Stretch) -> bool:
    return known is None or known.first_token is None or stretch.end <= known.first_token


def _bars(stretches: list[tuple[Stretch, WorkKind]]) -> Bars:
    return Bars(
        node=np.array([each.node for each, _ in stretches], np.int64),
        stage=np.array([each.stage for each, _ in stretches], np.int64),
        kind=np.array([WORK.index(kind) for _, kind in stretches], np.int64),
        start=np.array([each.start for each, _ in stretches]),
        end=np.array([each.end for each, _ in stretches]),
        version=np.array([each.version for each, _ in stretches], np.int64),
        what=[_what(each) for each, _ in stretches],
    )


def _what(stretch: Stretch) -> str:
    if stretch.batch >= 0 and len(stretch.members) != 1:
        return f"batch {stretch.batch}, {len(stretch.members)} requests"
    return stretch.task
