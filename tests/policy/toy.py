"""A toy cluster around the scheduler, and workloads for it."""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from lemix_hpc.policy.events import (
    Event,
    GroupOffered,
    Place,
    RequestArrived,
    StageFinished,
    TaskFinished,
    Tick,
)
from lemix_hpc.policy.latency import Affine, LatencyModel, Shape
from lemix_hpc.policy.placements import PLACEMENTS
from lemix_hpc.policy.rules import SchedulerConfig
from lemix_hpc.policy.scheduler import Scheduler

PER_TOKEN = LatencyModel((Affine(0.5, 0.01, 0),) * 2, (Affine(1.0, 0.02, 0),) * 2)


def constant(*, forward: float, backward: float) -> LatencyModel:
    """Two stages on which every pass takes the same time, whatever its length."""
    return LatencyModel((Affine(forward, 0, 0),) * 2, (Affine(backward, 0, 0),) * 2)


@dataclass(frozen=True, order=True)
class Ran:
    """A forward or backward that a stage has run."""

    end: float
    start: float
    node: int
    stage: int
    task: int
    backward: bool


class ToyCluster:
    """Stages that run what comes first, only their own backward at once; each pass takes the time that is predicted.

    `places` and `placed_at`: every task's place and when it was sent; `refused`; `log`: every pass, `finished`: when.
    """

    def __init__(self, scheduler: Scheduler, latency: LatencyModel, events: Sequence[Event]) -> None:
        self.scheduler = scheduler
        self.last = latency.stages - 1
        self.places: dict[int, Place] = {}
        self.placed_at: dict[int, float] = {}
        self.refused: list[int] = []
        self.finished: dict[int, float] = {}
        self.log: list[Ran] = []
        self.queues: dict[tuple[int, int], deque[tuple[int, bool]]] = defaultdict(deque)
        self.running: set[tuple[int, int]] = set()
        self.forward: dict[int, tuple[float, ...]] = {}
        self.backward: dict[int, tuple[float, ...]] = {}
        for event in events:
            if isinstance(event, RequestArrived):
                self.forward[event.task] = latency.request_times(event.prompt, event.output)
            elif isinstance(event, GroupOffered):
                for task, length in zip(event.tasks, event.lengths, strict=True):
                    shape = Shape.of((length,) * event.rows)
                    self.forward[task], self.backward[task] = (
                        latency.forward_times(shape),
                        latency.backward_times(shape),
                    )
        self._run(deque(sorted(events, key=lambda event: event.time)))

    def _run(self, arriving: deque[Event]) -> None:
        ending: list[Ran] = []
        while arriving or ending or self.scheduler.next_tick < float("inf"):
            now = min(
                ending[0].end if ending else float("inf"),
                arriving[0].time if arriving else float("inf"),
                self.scheduler.next_tick,
            )
            if ending and ending[0].end == now:
                self._tell(self._ended(heapq.heappop(ending)))
            elif self.scheduler.next_tick == now:
                self._tell([Tick(now)])
                assert self.scheduler.next_tick > now, "a tick helps"
            else:
                self._tell([arriving.popleft()])
            for ran in self._begin(now):
                heapq.heappush(ending, ran)

    def _tell(self, events: list[Event]) -> None:
        for event in events:
            for decision in self.scheduler.handle(event):
                assert decision.task not in self.places and decision.task not in self.refused
                if isinstance(decision, Place):
                    self.places[decision.task] = decision
                    self.placed_at[decision.task] = event.time
                    self.queues[decision.node, 0].append((decision.task, False))
                else:
                    self.refused.append(decision.task)

    def _begin(self, now: float) -> list[Ran]:
        begun = []
        for (node, stage), queue in sorted(self.queues.items()):
            if queue and (node, stage) not in self.running:
                task, backward = queue.popleft()
                times = self.backward if backward else self.forward
                begun.append(Ran(now + times[task][stage], now, node, stage, task, backward))
                self.running.add((node, stage))
        self.log += begun
        return begun

    def _ended(self, ran: Ran) -> list[Event]:
        node, stage, task = ran.node, ran.stage, ran.task
        self.running.remove((node, stage))
        told: list[Event] = [StageFinished(ran.end, node, stage, task, ran.start, ran.end, ran.backward)]
        if ran.backward and stage > 0:
            self.queues[node, stage - 1].append((task, True))
        elif not ran.backward and stage < self.last:
            self.queues[node, stage + 1].append((task, False))
        elif not ran.backward and task in self.backward:
            self.queues[node, stage].appendleft((task, True))
        else:
            self.finished[task] = ran.end
            told.append(TaskFinished(ran.end, node, task))
        return told

    def rows(self) -> list[tuple[int, int, int, str, float, float]]:
        """The log as (task, node, stage, kind, start, end), by start, node and stage."""
        ordered = sorted(self.log, key=lambda r: (r.start, r.node, r.stage))
        return [(r.task, r.node, r.stage, "B" if r.backward else "F", r.start, r.end) for r in ordered]


configs = st.builds(
    SchedulerConfig,
    nodes=st.integers(2, 3),
    placement=st.sampled_from(list(PLACEMENTS)),
    release=st.sampled_from(["async", "sync"]),
    lanes=st.sampled_from([None, 1, 2, 9]),
    order=st.sampled_from(["fcfs", "shortest", "deadline"]),
    serving_first=st.booleans(),
    pieces=st.sampled_from([1, 2, 16]),
    admission=st.sampled_from(["slack", "slack", "paper", "none"]),
    max_hold=st.floats(0.01, 8.0),
    t0=st.sampled_from([0.5, 1.0, 2.0, 3.0, 4.0]),
    seed=st.integers(0, 9),
)
_requests = st.tuples(st.floats(0, 10), st.integers(1, 200), st.integers(0, 8))
_groups = st.tuples(st.floats(0, 10), st.integers(1, 3), st.lists(st.integers(1, 100), min_size=1, max_size=4))


@st.composite
def workloads(draw: st.DrawFn) -> list[Event]:
    """Requests and groups of training micro-batches, all numbered."""
    events: list[Event] = []
    number = 0
    for time, prompt, output in draw(st.lists(_requests, min_size=4, max_size=12)):
        events.append(RequestArrived(time, number, prompt, output))
        number += 1
    for index, (time, rows, lengths) in enumerate(draw(st.lists(_groups, min_size=2, max_size=6))):
        tasks = tuple(range(number, number + len(lengths)))
        events.append(GroupOffered(time, index, tasks, rows, tuple(lengths)))
        number += len(lengths)
    return events
