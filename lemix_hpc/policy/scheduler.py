"""The scheduler: events in, decisions out. Pure and deterministic; the simulator and the MPI runtime drive the same object."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import singledispatchmethod
from typing import Literal

from lemix_hpc.policy.drift import DEFAULT_LIMIT
from lemix_hpc.policy.events import (
    Decision,
    Event,
    GroupOffered,
    PassMeasured,
    Place,
    RequestArrived,
    StageFinished,
    TaskFinished,
    Tick,
    TrainingClosed,
)
from lemix_hpc.policy.forecast import NodeForecast
from lemix_hpc.policy.latency import LatencyModel, Shape
from lemix_hpc.policy.placement import Candidate, LeastCompletion, Placement, RoundRobin, Separate, Split
from lemix_hpc.policy.recalibration import Recalibrated
from lemix_hpc.policy.release import Group, Release, Released, TrainingRelease

PlacementName = Literal["round-robin", "least-completion", "separate"]


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """What the policy depends on. `lanes`: how many groups are fed to nodes at the same time; default one per node.

    `recalibrate`: correct stage times by what ran. `drift_limit`: relative error of the given times that raises an alarm.
    """

    nodes: int
    placement: PlacementName = "least-completion"
    release: Release = "async"
    training_nodes: int | None = None
    lanes: int | None = None
    recalibrate: bool = True
    drift_limit: float = DEFAULT_LIMIT

    @property
    def split(self) -> Split | None:
        """Which nodes serve and which train, where they are separate."""
        return Split.of(self.nodes, self.training_nodes) if self.placement == "separate" else None


def _placement(config: SchedulerConfig) -> Placement:
    if config.split is not None:
        return Separate(config.split)
    return RoundRobin(config.nodes) if config.placement == "round-robin" else LeastCompletion()


class Scheduler:
    """Places requests when they arrive and training micro-batches when the release rule lets them go.

    Each task is forecast with the stage times that are known when it comes, and keeps them.
    """

    def __init__(self, config: SchedulerConfig, latency: LatencyModel) -> None:
        self._latency = Recalibrated(latency, active=config.recalibrate, limit=config.drift_limit)
        self._forecasts = [NodeForecast(latency.stages) for _ in range(config.nodes)]
        self._placement = _placement(config)
        self._trainers = config.split.training if config.split else range(config.nodes)
        lanes = len(self._trainers) if config.lanes is None else min(config.lanes, len(self._trainers))
        self._release = TrainingRelease(config.release, lanes)

    @property
    def recalibrated(self) -> Recalibrated:
        """The stage times that the next forecast goes by, and what they were learned from."""
        return self._latency

    def next_tick(self) -> float:
        """When a `Tick` is due [s], inf when nothing is held back."""
        return math.inf

    def handle(self, event: Event) -> list[Decision]:
        """Take in one event; events come in the order of their times."""
        return self._on(event)

    @singledispatchmethod
    def _on(self, event: object) -> list[Decision]:
        raise TypeError(f"no event: {event!r}")

    @_on.register
    def _request_arrived(self, event: RequestArrived) -> list[Decision]:
        forward = self._latency.request_times(event.prompt, event.output)
        candidates = [Candidate(n, f.predict(event.time, forward)) for n, f in enumerate(self._forecasts)]
        choice = self._placement.choose(candidates, training=False)
        self._forecasts[choice.node].assign(event.task, choice.path, forward)
        return [Place(event.task, choice.node, event.time, choice.path.response, key=event.time)]

    @_on.register
    def _group_offered(self, event: GroupOffered) -> list[Decision]:
        shape = Shape.of((round(sum(event.lengths) / len(event.lengths)),) * event.rows)
        self._release.offer(Group(event.group, event.tasks, shape))
        return self._open_groups(event.time)

    @_on.register
    def _training_closed(self, event: TrainingClosed) -> list[Decision]:  # noqa: ARG002
        self._release.close()
        return []

    @_on.register
    def _stage_finished(self, event: StageFinished) -> list[Decision]:
        if event.last:
            forecast = self._forecasts[event.node]
            forecast.observe(event.task, event.stage, event.start, event.end, backward=event.backward)
        released = self._release.finished(event.task, event.stage, backward=event.backward)
        return [self._feed(micro_batch, event.time) for micro_batch in released] + self._open_groups(event.time)

    @_on.register
    def _task_finished(self, event: TaskFinished) -> list[Decision]:
        self._forecasts[event.node].forget(event.task)
        return []

    @_on.register
    def _tick(self, event: Tick) -> list[Decision]:  # noqa: ARG002
        return []

    @_on.register
    def _pass_measured(self, event: PassMeasured) -> list[Decision]:
        self._latency.measured(event)
        return []

    def _open_groups(self, now: float) -> list[Decision]:
        released = self._release.start(lambda group: self._node_for(group, now))
        return [self._feed(micro_batch, now) for micro_batch in released]

    def _node_for(self, group: Group, now: float) -> int:
        forward, backward = self._latency.forward_times(group.shape), self._latency.backward_times(group.shape)
        busy = self._release.busy_nodes
        free = [n for n in self._trainers if n not in busy]
        candidates = [Candidate(n, self._forecasts[n].predict(now, forward, backward)) for n in free]
        return self._placement.choose(candidates, training=True).node

    def _feed(self, released: Released, now: float) -> Decision:
        forward, backward = self._latency.forward_times(released.shape), self._latency.backward_times(released.shape)
        forecast = self._forecasts[released.node]
        path = forecast.predict(now, forward, backward)
        forecast.assign(released.task, path, forward, backward)
        return Place(released.task, released.node, now, path.response, key=0.0)
