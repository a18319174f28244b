"""The scheduler, alone and around a toy cluster whose stages take the predicted times."""

import heapq
from collections import defaultdict, deque
from dataclasses import dataclass
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.policy.events import (
    Event,
    GroupOffered,
    Place,
    RequestArrived,
    StageFinished,
    TaskFinished,
    TrainingClosed,
)
from lemix_hpc.policy.latency import Affine, LatencyModel, Shape
from lemix_hpc.policy.scheduler import PlacementName, Scheduler, SchedulerConfig


def constant(*, forward: float, backward: float) -> LatencyModel:
    """Two stages on which every pass takes the same time, whatever its length."""
    return LatencyModel((Affine(forward, 0, 0),) * 2, (Affine(backward, 0, 0),) * 2)


PER_TOKEN = LatencyModel((Affine(0.5, 0.01, 0),) * 2, (Affine(1.0, 0.02, 0),) * 2)


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
    """Stages that run what comes first, only their own backward at once; each pass takes the time that is predicted."""

    def __init__(self, config: SchedulerConfig, latency: LatencyModel, events: list[Event]) -> None:
        self.scheduler = Scheduler(config, latency)
        self.last = latency.stages - 1
        self.events = events
        self.places: dict[int, Place] = {}
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
                shape = Shape.of((event.lengths[0],) * event.rows)
                self.forward.update(dict.fromkeys(event.tasks, latency.forward_times(shape)))
                self.backward.update(dict.fromkeys(event.tasks, latency.backward_times(shape)))
        self._run()

    def _run(self) -> None:
        arriving = deque(sorted(self.events, key=lambda event: event.time))
        ending: list[Ran] = []
        while arriving or ending:
            if ending and (not arriving or ending[0].end <= arriving[0].time):
                ran = heapq.heappop(ending)
                self._tell(self._ended(ran))
                now = ran.end
            else:
                now = arriving[0].time
                self._tell([arriving.popleft()])
            for ran in self._begin(now):
                heapq.heappush(ending, ran)

    def _tell(self, events: list[Event]) -> None:
        for event in events:
            for place in self.scheduler.handle(event):
                assert place.task not in self.places
                self.places[place.task] = place
                self.queues[place.node, 0].append((place.task, False))

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


def test_a_request_waits_for_the_backward_that_is_in_its_way() -> None:
    """Worked out by hand: on stage 1 the backward of 0 is there before the forward of 1 has come through stage 0."""
    events = [GroupOffered(0.0, 0, (0,), 1, (8,)), RequestArrived(0.5, 1, 8, 0)]
    cluster = ToyCluster(SchedulerConfig(nodes=1), constant(forward=1, backward=2), events)
    assert cluster.rows() == [
        (0, 0, 0, "F", 0.0, 1.0),
        (1, 0, 0, "F", 1.0, 2.0),
        (0, 0, 1, "F", 1.0, 2.0),
        (0, 0, 1, "B", 2.0, 4.0),
        (0, 0, 0, "B", 4.0, 6.0),
        (1, 0, 1, "F", 4.0, 5.0),
    ]
    assert cluster.places[1].response == 4.5


def test_one_lane_makes_training_one_chain_over_all_nodes() -> None:
    """Worked out by hand: 2 follows 0 although node 1 is free; the request goes to the node that does not train."""
    events = [GroupOffered(0.0, 0, (0,), 1, (8,)), RequestArrived(1.0, 1, 8, 0), GroupOffered(0.0, 1, (2,), 1, (8,))]
    config = SchedulerConfig(nodes=2, release="sync", lanes=1)
    cluster = ToyCluster(config, constant(forward=1, backward=1), events)
    assert cluster.rows() == [
        (0, 0, 0, "F", 0.0, 1.0),
        (0, 0, 1, "F", 1.0, 2.0),
        (1, 1, 0, "F", 1.0, 2.0),
        (0, 0, 1, "B", 2.0, 3.0),
        (1, 1, 1, "F", 2.0, 3.0),
        (0, 0, 0, "B", 3.0, 4.0),
        (2, 0, 0, "F", 4.0, 5.0),
        (2, 0, 1, "F", 5.0, 6.0),
        (2, 0, 1, "B", 6.0, 7.0),
        (2, 0, 0, "B", 7.0, 8.0),
    ]


def test_a_micro_batch_waits_for_the_release_and_its_response_counts_from_there() -> None:
    events = [GroupOffered(0.0, 0, (0, 1), 1, (8, 8))]
    cluster = ToyCluster(SchedulerConfig(nodes=1), constant(forward=1, backward=1), events)
    assert (cluster.places[1].eligible, cluster.places[1].response) == (1.0, 3.0)


requests = st.builds(
    RequestArrived, st.floats(0, 30), st.just(-1), prompt=st.integers(1, 200), output=st.integers(0, 8)
)
groups = st.tuples(st.floats(0, 30), st.integers(1, 4), st.integers(1, 3), st.integers(1, 100))
configs = st.builds(
    SchedulerConfig,
    nodes=st.integers(2, 4),
    placement=st.sampled_from(["round-robin", "least-completion", "separate"]),
    release=st.sampled_from(["async", "sync"]),
    lanes=st.sampled_from([None, 1, 2, 9]),
)


@st.composite
def workloads(draw: st.DrawFn) -> list[Event]:
    """Requests and groups of training micro-batches, all numbered."""
    events: list[Event] = []
    number = 0
    for request in draw(st.lists(requests, max_size=10)):
        events.append(RequestArrived(request.time, number, request.prompt, request.output))
        number += 1
    for index, (time, size, rows, length) in enumerate(draw(st.lists(groups, max_size=5))):
        events.append(GroupOffered(time, index, tuple(range(number, number + size)), rows, (length,) * size))
        number += size
    return events


@given(configs, workloads())
def test_every_task_is_placed_once_where_it_may_be_and_finishes(config: SchedulerConfig, events: list[Event]) -> None:
    cluster = ToyCluster(config, PER_TOKEN, events)
    assert cluster.finished.keys() == cluster.places.keys() == cluster.forward.keys()
    arrived = {event.task: event.time for event in events if isinstance(event, RequestArrived)}
    for task, place in cluster.places.items():
        assert place.eligible >= arrived.get(task, 0.0)
        assert place.response >= sum(cluster.forward[task]) - 1e-9
        if config.split is not None:
            assert place.node in (config.split.training if task in cluster.backward else config.split.serving)
    members = {task: event.group for event in events if isinstance(event, GroupOffered) for task in event.tasks}
    for node in range(config.nodes):
        placed = [members[task] for task, place in cluster.places.items() if place.node == node and task in members]
        for group, run in groupby(placed):
            assert len(list(run)) == list(members.values()).count(group)  # whole groups, one after the other


@given(configs, workloads())
def test_the_same_events_give_the_same_decisions(config: SchedulerConfig, events: list[Event]) -> None:
    first, second = (ToyCluster(config, PER_TOKEN, events) for _ in range(2))
    assert first.places == second.places


@given(st.lists(st.floats(0, 20), min_size=1, max_size=12), st.integers(1, 3))
def test_forecasts_of_serving_alone_come_true(times: list[float], nodes: int) -> None:
    """Equal requests, first come, first served: nothing happens that the forecast has not foreseen."""
    events: list[Event] = [RequestArrived(time, task, 100, 0) for task, time in enumerate(sorted(times))]
    cluster = ToyCluster(SchedulerConfig(nodes=nodes), PER_TOKEN, events)
    for task, place in cluster.places.items():
        assert place.eligible + place.response == pytest.approx(cluster.finished[task])


def test_reports_of_a_generating_request_count_with_its_last_pass() -> None:
    scheduler = Scheduler(SchedulerConfig(nodes=1), constant(forward=1, backward=2))
    scheduler.handle(RequestArrived(0.0, 0, 8, 3))  # 3 s on each stage
    scheduler.handle(StageFinished(1.0, 0, 0, 0, 0.0, 1.0, last=False))
    assert scheduler.handle(RequestArrived(1.0, 1, 8, 0)) == [Place(1, 0, 1.0, 6.0, key=1.0)]  # stages free at 3 and 6
    scheduler.handle(StageFinished(5.0, 0, 0, 0, 0.0, 5.0, last=True))
    assert scheduler.handle(RequestArrived(5.0, 2, 8, 0)) == [Place(2, 0, 5.0, 5.0, key=5.0)]  # 6 and 9


@pytest.mark.parametrize("placement", ["least-completion", "round-robin"])
def test_a_node_that_is_being_fed_a_group_gets_no_other(placement: PlacementName) -> None:
    """Node 0 is busy with a long request, and still the second group goes there."""
    scheduler = Scheduler(SchedulerConfig(nodes=2, placement=placement), PER_TOKEN)
    scheduler.handle(RequestArrived(0.0, 0, 4000, 0))  # to node 0, for a long time
    nodes = []
    for group in range(2):
        nodes += [
            place.node
            for place in scheduler.handle(GroupOffered(0.0, group, (2 * group + 1, 2 * group + 2), 1, (8, 8)))
        ]
    assert sorted(nodes) == [0, 1]
    assert scheduler.handle(GroupOffered(0.0, 2, (9,), 1, (8,))) == []


def test_a_lost_request_leaves_its_node_free() -> None:
    scheduler = Scheduler(SchedulerConfig(nodes=1), constant(forward=1, backward=2))
    scheduler.handle(RequestArrived(0.0, 0, 8, 100))
    scheduler.handle(TaskFinished(1.0, 0, 0))
    assert scheduler.handle(RequestArrived(1.0, 1, 8, 0)) == [Place(1, 0, 1.0, 2.0, key=1.0)]


def test_closing_training_drops_what_was_offered() -> None:
    scheduler = Scheduler(SchedulerConfig(nodes=1), constant(forward=1, backward=1))
    assert [place.task for place in scheduler.handle(GroupOffered(0.0, 0, (0, 1), 1, (8, 8)))] == [0]
    assert scheduler.handle(GroupOffered(0.0, 1, (2,), 1, (8,))) == []
    assert scheduler.handle(TrainingClosed(0.5)) == []
    assert [place.task for place in scheduler.handle(StageFinished(1.0, 0, 0, 0, 0.0, 1.0))] == [1]
    assert scheduler.handle(StageFinished(2.0, 0, 0, 1, 1.0, 2.0)) == []


def test_what_is_no_event_is_refused() -> None:
    scheduler = Scheduler(SchedulerConfig(nodes=1), constant(forward=1, backward=1))
    with pytest.raises(TypeError, match="no event: 'tick'"):
        scheduler.handle("tick")  # type: ignore[arg-type]


def test_a_separate_cluster_needs_both_parts() -> None:
    with pytest.raises(ValueError, match="1 of 1 nodes"):
        Scheduler(SchedulerConfig(nodes=1, placement="separate", training_nodes=1), PER_TOKEN)
