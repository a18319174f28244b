"""Small simulated clusters with stage times that can be added up by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lemix_hpc.policy.execution_rules import BACKWARD, COMMIT
from lemix_hpc.policy.latency import Affine, LatencyModel
from lemix_hpc.policy.latency_tables import make_times
from lemix_hpc.policy.rules import SchedulerConfig
from lemix_hpc.policy.scheduler import Scheduler
from lemix_hpc.simulator.cluster_state import ClusterState, SimulationConfig, make_requests
from lemix_hpc.simulator.dtypes import Records
from lemix_hpc.simulator.simulator import run_simulation

CLUSTER = SimulationConfig(
    nodes=1,
    stages=2,
    pieces=4,
    max_requests=1,
    max_tokens=4096,
    rows=1,
    serving_first=True,
    yield_training=True,
    minimum_share=0.0,
    sync=False,
    gpipe=False,
    servers=0,
    copy_every=1,
    endless=False,
    latency_error=0.0,
    seed=0,
    logs=False,
    measures=False,
    limited=False,
    max_wait=0.0,
    offload_rate=0.0,
)


@dataclass(frozen=True)
class SimulationResult:
    """A cluster at its end."""

    shape: SimulationConfig
    cluster: ClusterState

    @property
    def records(self) -> Records:
        """All spans."""
        return self.cluster.spans[: self.cluster.run["spans"][0]]

    @property
    def log(self) -> list[tuple[int, int, int, str, float, float]]:
        """All passes as (task, node, stage, "F" or "B", start, end), sorted by (start, node, stage)."""
        spans = self.records[self.records["kind"] != COMMIT]
        passes = zip(
            *(spans[field].tolist() for field in ("task", "node", "stage", "kind", "start", "end")), strict=True
        )
        named = [(*where, "B" if kind == BACKWARD else "F", start, end) for *where, kind, start, end in passes]
        return sorted(named, key=lambda span: (span[4], span[1], span[2]))

    def of(self, task: int) -> list[tuple[int, str, float, float]]:
        """A task's passes as (stage, "F" or "B", start, end)."""
        return [(stage, kind, start, end) for number, _, stage, kind, start, end in self.log if number == task]


def run(
    requests: Sequence[tuple[float, int, int]] | Records = (),
    groups: Iterable[Sequence[int]] | None = None,
    *,
    forward: float = 1.0,
    backward: float = 2.0,
    per_token: float = 0.0,
    config: dict[str, Any] | None = None,
    stage_memory: Records | None = None,
    **changes: Any,
) -> SimulationResult:
    """Play requests (arrival, prompt, output) and groups of micro-batches; other arguments change `CLUSTER` and `config`.

    `forward` and `backward`: seconds of every pass on every stage; `per_token`: more for every new token; `stage_memory`: the
    memory of the stages.
    """
    sync = (config or {}).get("release") == "sync"
    changes.setdefault("in_flight", changes.get("stages", CLUSTER.stages))
    shape = CLUSTER._replace(limited=stage_memory is not None, sync=sync, **changes)
    forwards, backwards = (Affine(seconds, per_token, 0.0) for seconds in (forward, backward))
    latency = LatencyModel((forwards,) * shape.stages, (backwards,) * shape.stages)
    given = SchedulerConfig(
        nodes=shape.nodes,
        order="fcfs",
        admission="none",
        serving_first=shape.serving_first,
        yield_training=shape.yield_training,
        t0=shape.stages * forward,
    )
    scheduler = Scheduler(replace(given, **(config or {})), latency)
    if not isinstance(requests, np.ndarray):
        arrivals, prompts, outputs = zip(*requests, strict=True) if requests else ((), (), ())
        requests = make_requests(arrivals, prompts, outputs)
    times = make_times([latency], np.zeros(shape.nodes, dtype=np.int64), table=64)
    fed = None if groups is None else (list(group) for group in groups)
    return SimulationResult(shape, run_simulation(scheduler, shape, times, requests, fed, stage_memory).cluster)
