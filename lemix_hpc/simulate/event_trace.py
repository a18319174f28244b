"""What the policy was told in a simulated run, as the events of `lemix_hpc.records.event_log`."""

from __future__ import annotations

from collections.abc import Iterator

from lemix_hpc.policy.events import (
    Event,
    GroupOffered,
    PassMeasured,
    RequestArrived,
    StageFinished,
    TaskFinished,
    Tick,
    TrainingClosed,
)
from lemix_hpc.simulate.cluster_state import ClusterState, SimulationConfig
from lemix_hpc.simulate.dtypes import ARRIVED, CLOSED, ENDED, OFFERED, PASSED_STAGE


def event_trace(
    cluster: ClusterState, config: SimulationConfig, measured: list[tuple[int, PassMeasured]]
) -> Iterator[Event]:
    """All events in order. `measured`: how long passes took, each behind so many other events."""
    fields = ("kind", "time", "node", "stage", "task", "start", "backward", "last")
    events = cluster.events[: cluster.run["events"][0]]
    rows = zip(*(events[field].tolist() for field in fields), strict=True)
    at = 0
    for number, row in enumerate(rows):
        while at < len(measured) and measured[at][0] <= number:
            yield measured[at][1]
            at += 1
        yield _event(cluster, config, *row)


def _event(
    cluster: ClusterState,
    config: SimulationConfig,
    kind: int,
    time: float,
    node: int,
    stage: int,
    task: int,
    start: float,
    backward: bool,
    last: bool,
) -> Event:
    requests = cluster.requests
    if kind == ARRIVED:
        return RequestArrived(time, task, int(requests[task]["prompt"]), int(requests[task]["output"]))
    if kind == OFFERED:
        first, size = int(cluster.groups[task]["first"]), int(cluster.groups[task]["size"])
        tasks = tuple(range(len(requests) + first, len(requests) + first + size))
        return GroupOffered(time, task, tasks, config.rows, tuple(cluster.lengths[first : first + size].tolist()))
    if kind == CLOSED:
        return TrainingClosed(time)
    if kind == PASSED_STAGE:
        return StageFinished(time, node, stage, task, start, time, backward, last)
    if kind == ENDED:
        return TaskFinished(time, node, task, int(requests[task]["produced"]) if task < len(requests) else 0)
    return Tick(time)
