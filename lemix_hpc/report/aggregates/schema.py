"""What figures of a run are drawn from: plain data, in a size that does not depend on the length of the run.

Times are in seconds since the start of the run, latencies in milliseconds, shares from 0 to 1. NaN: undefined there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lemix_hpc.policy.classes import ServiceClass
from lemix_hpc.records.schema import MemoryUse

Array = NDArray[np.float64]
Place = tuple[int, int]
"""Node and stage."""
WorkKind = Literal["prefill", "decode", "forward", "backward", "step", "copy", "save"]
"""As in spans, serving by whether any request of its batch had no token yet."""
WORK: tuple[WorkKind, ...] = ("prefill", "decode", "forward", "backward", "step", "copy", "save")
Latency = Literal["ttft", "tpot", "response"]
LATENCIES: tuple[Latency, ...] = ("ttft", "tpot", "response")
WAITS = ("placement", "queue", "prompt", "waits in the prompt", "tokens", "waits between tokens")
"""What the response of a request consists of, in order: until it was placed; from then until its first pass; in passes of the
prompt, and between these; in passes for further tokens, and between these."""


@dataclass(frozen=True, eq=False)
class Curve:
    """A distribution: `shares` of the values are at most `values` [ms]."""

    values: Array
    shares: Array
    count: int


@dataclass(frozen=True, eq=False)
class LatencyOverTime:
    """Percentiles [ms] of the requests that arrived in each cell, within 1.1 %; NaN where none did."""

    p50: Array
    p99: Array


@dataclass(frozen=True, eq=False)
class Load:
    """Requests by the cells of time, which begin and end at `edges`: `arrived` and `finished` per second; `attainment`, the
    share of the interactive ones that arrived then and met `limit`, a text; `waiting`: of those that arrived before the end of
    the cell, how many had not ended by then."""

    edges: Array
    arrived: Array
    finished: Array
    attainment: Array
    waiting: Array
    limit: str
    latencies: Mapping[Latency, LatencyOverTime]


@dataclass(frozen=True, eq=False)
class Forecasts:
    """Predicted and measured responses [ms] of every `every`-th finished interactive request."""

    predicted: Array
    measured: Array
    every: int


@dataclass(frozen=True, eq=False)
class Training:
    """Micro-batches that finished, by the cells of time, which begin and end at `edges`: mean `loss` [nats per token], and
    trained tokens per second. `step_loss`: the mean loss by the optimizer step that they went into, cells between `steps`."""

    edges: Array
    loss: Array
    tokens_per_s: Array
    steps: Array
    step_loss: Array


@dataclass(frozen=True, eq=False)
class Versions:
    """From each of these `times` on some work used weights of this `version`, and no earlier work did."""

    times: Array
    versions: Array


@dataclass(frozen=True, eq=False)
class Placement:
    """How many requests went to each node, a row of `requests`, by the length of their prompts: `lengths` are upper ends
    [tokens]. And micro-batches by node. `left_out`: nodes that are more than are shown."""

    lengths: list[int]
    requests: Array
    micro_batches: Array
    left_out: int


@dataclass(frozen=True, eq=False)
class Bars:
    """Stretches of work as they were, in the order of their starts: a place in `WORK` for each kind."""

    node: NDArray[np.int64]
    stage: NDArray[np.int64]
    kind: NDArray[np.int64]
    start: Array
    end: Array
    version: NDArray[np.int64]
    what: list[str]


@dataclass(frozen=True, eq=False)
class Lanes:
    """The work of each stage: its `shares` of each cell of time by kind, cells from `edges` to `edges`; `bars`: all stretches
    of work, if they are few, else those of a moment in the middle of the run. `seconds`: in all. `left_out`: stages that are
    more than are shown."""

    edges: Array
    shares: Mapping[Place, Mapping[WorkKind, Array]]
    bars: Bars
    bars_are_all: bool
    seconds: Mapping[Place, Mapping[WorkKind, float]]
    left_out: int


@dataclass(frozen=True)
class Waits:
    """Mean seconds of each of `WAITS`, and of how many requests."""

    seconds: tuple[float, ...]
    count: int


@dataclass(frozen=True, eq=False)
class RunAggregates:
    """All of a run. None: there is nothing of this kind in it, or it was not written down (`spans`)."""

    nodes: int
    stages: int
    t0_s: float
    slo_factors: list[float]
    limits_ms: Mapping[str, float]
    curves: Mapping[ServiceClass, Mapping[Latency, Curve]]
    load: Load | None
    forecasts: Forecasts | None
    training: Training | None
    placement: Placement
    lanes: Lanes | None
    versions: Versions | None
    waits: Mapping[str, Waits]
    memory: MemoryUse | None
    spans: str
