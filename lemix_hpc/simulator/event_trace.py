"""What the policy was told in a simulated run, as the events of `lemix_hpc.records.event_log`."""

from __future__ import annotations

from collections.abc import Iterator

from lemix_hpc.policy.event_records import OFFERED, PASSED_ALL, event_of
from lemix_hpc.policy.events import AnswerPassed, BatchMeasured, Event, GroupOffered, PassMeasured
from lemix_hpc.simulator.cluster_state import ClusterState, SimulationConfig


def event_trace(
    cluster: ClusterState, config: SimulationConfig, measured: list[tuple[int, PassMeasured | BatchMeasured]]
) -> Iterator[Event]:
    """All events in order. `measured`: how long passes took, each behind so many other events."""
    at = 0
    for number, record in enumerate(cluster.events[: cluster.run["events"][0]].tolist()):
        while at < len(measured) and measured[at][0] <= number:
            yield measured[at][1]
            at += 1
        kind, time, node, _, task, *_ = record
        if kind == OFFERED:
            yield _group_offered(cluster, config, time, task)
        elif kind == PASSED_ALL:
            passed = cluster.passed[task]
            yield AnswerPassed(time, node, task, tuple(passed["start"].tolist()), tuple(passed["end"].tolist()))
        else:
            yield event_of(*record)


def _group_offered(cluster: ClusterState, config: SimulationConfig, time: float, group: int) -> GroupOffered:
    first, size = int(cluster.groups[group]["first"]), int(cluster.groups[group]["size"])
    tasks = tuple(range(len(cluster.requests) + first, len(cluster.requests) + first + size))
    return GroupOffered(time, group, tasks, config.rows, tuple(cluster.lengths[first : first + size].tolist()))
