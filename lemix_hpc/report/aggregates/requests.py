"""What the requests of a run come to: their latencies, the load over time, forecasts, and where they were placed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import numpy as np

from lemix_hpc.policy.classes import ServiceClass
from lemix_hpc.records.schema import RunFacts, ServedTask, TrainedTask
from lemix_hpc.report import metrics
from lemix_hpc.report.aggregates.cells import Thinned, TimeCells, bucket, percentile_of_buckets
from lemix_hpc.report.aggregates.schema import (
    LATENCIES,
    Array,
    Curve,
    Forecasts,
    Latency,
    LatencyOverTime,
    Load,
    Placement,
)
from lemix_hpc.report.distribution import Distribution

MOST_CELLS = 128
MOST_POINTS = 800
MOST_NODES = 64
SHARES = np.concatenate([np.linspace(0.0, 0.95, 96), np.linspace(0.951, 1.0, 50)])
"""Of the values of a distribution; close to each other where they are most looked at."""
_MEASURES = {
    "ttft": metrics.time_to_first_token,
    "tpot": metrics.time_per_output_token,
    "response": metrics.response,
}


class Requests:
    """Takes in all tasks of a run, one by one."""

    def __init__(self, facts: RunFacts) -> None:
        self._facts = facts
        self._curves: dict[tuple[ServiceClass, Latency], Distribution] = {}
        self._cells: TimeCells[str | tuple[Latency, int]] = TimeCells(MOST_CELLS)
        self._forecasts: Thinned[tuple[float, float]] = Thinned(MOST_POINTS)
        self._placed: Counter[tuple[int, int]] = Counter()
        self._micro_batches: Counter[int] = Counter()
        factors = sorted(facts.slo_factors)
        self._factor = factors[len(factors) // 2] if factors else None

    def add(self, task: ServedTask) -> None:
        """The next request."""
        self._cells.count("arrived", task.arrival)
        self._cells.count("ended", task.arrival if task.finished is None else task.finished)
        if task.node is not None:
            self._placed[task.node, max(task.prompt_tokens, 1).bit_length()] += 1
        if task.outcome == "finished" and task.finished is not None:
            self._cells.count("finished", task.finished)
        for name in LATENCIES:
            self._latency(task, name)
        if task.service == "interactive":
            self._cells.count("interactive", task.arrival)
            self._cells.count("met", task.arrival, float(self._meets(task)))
            real = metrics.response(task)
            if real is not None and task.predicted_response_s is not None:
                self._forecasts.add((1e3 * task.predicted_response_s, 1e3 * real))

    def add_training(self, task: TrainedTask) -> None:
        """The next micro-batch."""
        if task.node is not None:
            self._micro_batches[task.node] += 1

    def slowest_tenth_s(self) -> float:
        """A tenth of the interactive requests takes longer than that [s]; endless if there are none."""
        found = self._curves.get(("interactive", "response"))
        return math.inf if found is None else float(found.at(np.array([0.9]))[0])

    def curves(self) -> Mapping[ServiceClass, Mapping[Latency, Curve]]:
        """By class and latency, those that some request has."""
        curves: dict[ServiceClass, dict[Latency, Curve]] = {}
        for (service, name), values in self._curves.items():
            curves.setdefault(service, {})[name] = Curve(1e3 * values.at(SHARES), SHARES, len(values))
        return curves

    def load(self) -> Load | None:
        """None without requests."""
        cells = self._cells
        if "arrived" not in cells.names():
            return None
        arrived, ended, interactive = (cells.sums(key) for key in ("arrived", "ended", "interactive"))
        return Load(
            edges=cells.edges,
            arrived=arrived / cells.width,
            finished=cells.sums("finished") / cells.width,
            attainment=ratio(cells.sums("met"), interactive),
            waiting=np.cumsum(arrived) - np.cumsum(ended),
            limit=self._limit(),
            latencies={name: over for name in LATENCIES if (over := self._over_time(name)) is not None},
        )

    def forecasts(self) -> Forecasts | None:
        """None if nothing was predicted."""
        if not self._forecasts.kept:
            return None
        predicted, measured = np.array(self._forecasts.kept).T
        return Forecasts(predicted, measured, self._forecasts.every)

    def placement(self) -> Placement:
        """Of the first `MOST_NODES` nodes."""
        nodes = range(min(self._facts.nodes, MOST_NODES))
        bits = sorted({length for _, length in self._placed})
        bits = list(range(bits[0], bits[-1] + 1)) if bits else []
        counts = np.array([[float(self._placed[node, length]) for length in bits] for node in nodes])
        trained = np.array([float(self._micro_batches[node]) for node in nodes])
        return Placement([(1 << length) - 1 for length in bits], counts, trained, self._facts.nodes - len(nodes))

    def _latency(self, task: ServedTask, name: Latency) -> None:
        seconds = _MEASURES[name](task)
        if seconds is None:
            return
        self._curves.setdefault((task.service, name), Distribution()).add(seconds)
        if task.service == "interactive":
            self._cells.count((name, bucket(seconds)), task.arrival)

    def _meets(self, task: ServedTask) -> bool:
        if self._facts.slo_ms:
            return all(metrics.meets(task, name, limit) for name, limit in self._facts.slo_ms.items())
        if self._factor is None:
            return task.outcome == "finished"
        return metrics.meets(task, "response", 1e3 * self._factor * self._facts.t0_s)

    def _limit(self) -> str:
        if self._facts.slo_ms:
            return ", ".join(f"{name} within {limit:g} ms" for name, limit in self._facts.slo_ms.items())
        return "finished" if self._factor is None else f"response within {self._factor:g} T0"

    def _over_time(self, name: Latency) -> LatencyOverTime | None:
        buckets = sorted(key[1] for key in self._cells.names() if isinstance(key, tuple) and key[0] == name)
        if not buckets:
            return None
        counts = np.array([self._cells.sums((name, number)) for number in buckets])
        p50, p99 = (
            np.array([1e3 * (percentile_of_buckets(cell, buckets, q) or math.nan) for cell in counts.T])
            for q in (50.0, 99.0)
        )
        return LatencyOverTime(p50, p99)


def ratio(part: Array, whole: Array) -> Array:
    """part / whole; NaN where that is 0."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), np.nan)
