"""The scheduler, alone and around a toy cluster whose stages take the predicted times."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.policy.events import (
    AnswerPassed,
    Event,
    GroupOffered,
    PassMeasured,
    Place,
    RequestArrived,
    StageFinished,
    TaskFinished,
)
from lemix_hpc.policy.latency import LatencyModel, Shape
from lemix_hpc.policy.latency_tables import make_times
from lemix_hpc.policy.rules import SchedulerConfig
from lemix_hpc.policy.scheduler import FIRST_GUESS, Scheduler
from lemix_hpc.policy.state import make_state
from tests.policy.toy import PER_TOKEN, ToyCluster, configs, constant, workloads

FIFO = SchedulerConfig(nodes=1, serving_first=False, order="fcfs", admission="none")


def played(config: SchedulerConfig, latency: LatencyModel, events: list[Event]) -> ToyCluster:
    return ToyCluster(Scheduler(config, latency), latency, events)


# Around a cluster


def test_a_request_waits_for_the_backward_that_is_in_its_way() -> None:
    """Worked out by hand: on stage 1 the backward of 0 is there before the forward of 1 has come through stage 0."""
    events: list[Event] = [GroupOffered(0.0, 0, (0,), 1, (8,)), RequestArrived(0.5, 1, 8, 0)]
    cluster = played(FIFO, constant(forward=1, backward=2), events)
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
    events: list[Event] = [
        GroupOffered(0.0, 0, (0,), 1, (8,)),
        RequestArrived(1.0, 1, 8, 0),
        GroupOffered(0.0, 1, (2,), 1, (8,)),
    ]
    cluster = played(replace(FIFO, nodes=2, release="sync", lanes=1), constant(forward=1, backward=1), events)
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
    cluster = played(FIFO, constant(forward=1, backward=1), [GroupOffered(0.0, 0, (0, 1), 1, (8, 8))])
    assert (cluster.places[1].eligible, cluster.places[1].response) == (1.0, 3.0)


@given(configs, workloads())
def test_every_task_is_placed_once_where_it_may_be_and_finishes(config: SchedulerConfig, events: list[Event]) -> None:
    cluster = played(config, PER_TOKEN, events)
    assert cluster.finished.keys() == cluster.places.keys() == cluster.forward.keys()
    arrived = {event.task: event.time for event in events if isinstance(event, RequestArrived)}
    for task, place in cluster.places.items():
        if task in arrived:
            assert place.eligible == arrived[task]
        if config.split is not None:
            assert place.node in (config.split.training if task in cluster.backward else config.split.serving)


@given(configs, workloads())
def test_nothing_is_left_when_all_is_done(config: SchedulerConfig, events: list[Event]) -> None:
    state = played(config, PER_TOKEN, events).scheduler.state
    assert sorted(state.free_slots[: state.counters[0]["free"]]) == list(range(state.slots.size))
    assert (state.table == -1).all()
    for chain in ("head", "tail", "first_training", "open_first"):
        assert (state.nodes[chain] == -1).all()
    for count in ("requests", "generating", "held"):
        assert (state.nodes[count] == 0).all()
    assert state.counters[0]["holding"] == 0
    assert state.counters[0]["lanes"] == config.lanes_in_all


@given(st.lists(st.floats(0, 20), min_size=1, max_size=12), st.integers(1, 3), st.booleans())
def test_forecasts_of_serving_alone_come_true(times: list[float], nodes: int, serving_first: bool) -> None:
    """Equal requests, first come, first served: nothing happens that the forecast has not foreseen."""
    events: list[Event] = [RequestArrived(time, task, 100, 0) for task, time in enumerate(sorted(times))]
    cluster = played(replace(FIFO, nodes=nodes, serving_first=serving_first), PER_TOKEN, events)
    for task, place in cluster.places.items():
        assert place.eligible + place.response == pytest.approx(cluster.finished[task])


# The order of requests


def keys(config: SchedulerConfig, *prompts: int) -> list[float]:
    """Keys of requests of these lengths that come at 2 s to one node; a token takes 20 ms, and 1 s whatever the length."""
    scheduler = Scheduler(config, PER_TOKEN)
    decisions = [scheduler.handle(RequestArrived(2.0, task, prompt, 0)) for task, prompt in enumerate(prompts)]
    return [decision.key for (decision,) in decisions if isinstance(decision, Place)]


ORDERED = replace(FIFO, serving_first=True)


def test_first_come_first_served_goes_by_arrival() -> None:
    assert keys(ORDERED, 100, 50) == [2.0, 2.0]


def test_shortest_goes_by_arrival_and_work() -> None:
    long, short = keys(replace(ORDERED, order="shortest"), 100, 50)
    assert 2.0 < short < long


def test_deadline_postpones_those_that_are_expected_to_be_late() -> None:
    """The first one is done after 3 s, the second one after 4.5 s and the third one after 6 s."""
    first, second, third = keys(replace(ORDERED, order="deadline", t0=1.0, slo_factor=4.6), 100, 100, 100)
    assert first == second == 2.0 < third


def test_a_request_with_a_smaller_key_goes_before_those_that_wait() -> None:
    scheduler = Scheduler(replace(ORDERED, order="shortest"), PER_TOKEN)
    for task, prompt in enumerate((100, 400)):
        scheduler.handle(RequestArrived(0.0, task, prompt, 0))
    (place,) = scheduler.handle(RequestArrived(0.1, 2, 50, 0))
    assert isinstance(place, Place)
    assert place.response == pytest.approx(1.5 + 1.5 + 1.0 - 0.1)  # behind the first one, which runs


# Output lengths


def response(scheduler: Scheduler, output: int) -> float:
    (place,) = scheduler.handle(RequestArrived(50.0, scheduler.state.slots.size - 1, 8, output))
    assert isinstance(place, Place)
    return place.response


def test_forecasts_do_not_know_output_lengths_unless_told() -> None:
    """A prompt and each further token take 2 s."""
    latency = constant(forward=1, backward=2)
    assert response(Scheduler(replace(FIFO, oracle=True), latency), 3) == 6.0
    assert response(Scheduler(FIFO, latency), 3) == 2 * FIRST_GUESS
    assert response(Scheduler(FIFO, latency), 1) == 2.0


def test_a_request_that_shares_its_batches_takes_no_less_than_alone_once_it_has_begun() -> None:
    """Alone it takes 7 s on each of two stages. The third and fourth have a half and the fifth a third of every batch."""
    scheduler = Scheduler(replace(ORDERED, oracle=True, batch_requests=3), constant(forward=1, backward=2))
    responses = []
    for task in range(5):
        (place,) = scheduler.handle(RequestArrived(0.0, task, 8, 7))
        assert isinstance(place, Place)
        responses.append(place.response)
    # They begin at 0, 7, 14, 18 and 22 s.
    assert responses == [14.0, 21.0, 28.0, 32.0, 36.0]


@given(st.lists(st.integers(1, 500), min_size=1, max_size=400))
def test_output_lengths_are_expected_to_be_the_median_of_the_last_ones(outputs: list[int]) -> None:
    scheduler = Scheduler(FIFO, constant(forward=1, backward=2))
    for task, output in enumerate(outputs):
        scheduler.handle(RequestArrived(0.0, task, 8, 600))
        scheduler.handle(TaskFinished(0.0, 0, task, output))
    recent = sorted(outputs[-256:])
    assert scheduler.state.counters[0]["expected_output"] == recent[len(recent) // 2]


def test_all_passes_of_a_request_that_generates_count_as_one() -> None:
    scheduler = Scheduler(replace(FIFO, oracle=True), constant(forward=1, backward=2))
    scheduler.handle(RequestArrived(0.0, 0, 8, 3))  # 3 s on each stage
    assert scheduler.handle(RequestArrived(1.0, 1, 8, 0)) == [Place(1, 0, 1.0, 6.0, key=1.0)]  # stages free at 3 and 6
    scheduler.handle(AnswerPassed(6.0, 0, 0, (0.0, 1.0), (5.0, 6.0)))
    assert scheduler.handle(RequestArrived(6.0, 2, 8, 0)) == [Place(2, 0, 6.0, 2.0, key=6.0)]  # 7 and 8


def test_a_lost_request_leaves_its_node_free() -> None:
    scheduler = Scheduler(FIFO, constant(forward=1, backward=2))
    scheduler.handle(RequestArrived(0.0, 0, 8, 100))
    scheduler.handle(TaskFinished(1.0, 0, 0))
    assert scheduler.handle(RequestArrived(1.0, 1, 8, 0)) == [Place(1, 0, 1.0, 2.0, key=1.0)]


# Kinds of nodes learn apart


def test_what_is_measured_on_a_node_teaches_nodes_of_its_kind() -> None:
    scheduler = Scheduler(replace(FIFO, nodes=3), (PER_TOKEN, PER_TOKEN), kinds=(0, 1, 1))
    for number in range(100):
        for stage in range(2):
            scheduler.handle(
                PassMeasured(float(number), 1, stage, "serve", Shape.of([100]), 0.75)
            )  # it should take 1.5 s
    places = [place for task in range(3) for place in scheduler.handle(RequestArrived(100.0, task, 100, 0))]
    nodes = [place.node for place in places if isinstance(place, Place)]
    assert sorted(nodes) == [1, 1, 2]
    assert scheduler.learned == ()


# Determinism


@given(configs, workloads())
def test_the_same_events_give_the_same_decisions(config: SchedulerConfig, events: list[Event]) -> None:
    first, second = (played(config, PER_TOKEN, events) for _ in range(2))
    assert (first.places, first.placed_at) == (second.places, second.placed_at)


STORY = """
from lemix_hpc.policy.events import GroupOffered, RequestArrived, StageFinished
from lemix_hpc.policy.latency import Affine, LatencyModel
from lemix_hpc.policy.scheduler import Scheduler, SchedulerConfig

form = (Affine(0.1, 0.013, 1e-7),) * 2
for placement in ("random", "lemix", "least-completion"):
    scheduler = Scheduler(SchedulerConfig(nodes=5, placement=placement, seed=3), LatencyModel(form, form))
    for task in range(0, 90, 3):
        now = task / 7
        for event in (
            RequestArrived(now, task, 1 + task * 37 % 300, task % 9),
            GroupOffered(now, task, (task + 1, task + 2), 2, (50, 60)),
            StageFinished(now, task % 5, 0, task, now, now + 0.3),
        ):
            print(scheduler.handle(event), scheduler.next_tick)
"""


def test_two_processes_decide_the_same() -> None:
    repository = Path(__file__).resolve().parents[2]
    told = [
        subprocess.run(
            [sys.executable, "-c", STORY],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=repository,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert told[0] == told[1]
    assert told[0].count("Place(") > 90


@given(configs, workloads(), st.integers(1, 4))
def test_room_that_has_to_grow_changes_no_decision(config: SchedulerConfig, events: list[Event], slots: int) -> None:
    small = Scheduler(config, PER_TOKEN)
    small.state = make_state(
        make_times([PER_TOKEN], np.zeros(config.nodes, dtype=np.int64)),
        lanes=config.lanes_in_all,
        seed=config.seed,
        expected_output=FIRST_GUESS,
        slots=slots,
    )
    grown, roomy = ToyCluster(small, PER_TOKEN, events), played(config, PER_TOKEN, events)
    assert (grown.places, grown.placed_at) == (roomy.places, roomy.placed_at)


def test_a_long_run_needs_no_more_slots_than_it_has_unfinished_tasks() -> None:
    scheduler = Scheduler(FIFO, constant(forward=1, backward=2))
    slots = scheduler.state.slots.size
    for task in range(4 * slots):
        scheduler.handle(RequestArrived(float(task), task, 8, 0))
        scheduler.handle(TaskFinished(float(task), 0, task))
    assert scheduler.state.slots.size == slots and scheduler.state.table.size == 2 * slots


def test_groups_that_are_on_offer_keep_their_turn_when_room_grows() -> None:
    scheduler = Scheduler(FIFO, constant(forward=1, backward=2))
    slots = scheduler.state.slots.size
    placed = []

    def run(task: int) -> None:
        placed.extend(scheduler.handle(StageFinished(0.0, 0, 0, task, 0.0, 0.0)))
        scheduler.handle(TaskFinished(0.0, 0, task))

    for group in range(slots):  # one micro-batch runs while three come
        placed += scheduler.handle(GroupOffered(0.0, group, tuple(range(3 * group, 3 * group + 3)), 1, (8,) * 3))
        run(group)
    for task in range(slots, 3 * slots):
        run(task)
    assert [decision.task for decision in placed] == list(range(3 * slots))
    assert scheduler.state.slots.size > slots


# What cannot be


def test_what_is_no_event_is_refused() -> None:
    scheduler = Scheduler(FIFO, constant(forward=1, backward=1))
    with pytest.raises(TypeError, match="no event: 'tick'"):
        scheduler.handle("tick")  # type: ignore[arg-type]


def test_tasks_of_a_group_are_numbered_one_after_the_other() -> None:
    scheduler = Scheduler(FIFO, constant(forward=1, backward=1))
    with pytest.raises(ValueError, match="numbered one after the other"):
        scheduler.handle(GroupOffered(0.0, 0, (0, 2), 1, (8, 8)))


def test_a_separate_cluster_needs_both_parts() -> None:
    with pytest.raises(ValueError, match="1 of 1 nodes"):
        Scheduler(SchedulerConfig(nodes=1, placement="separate", training_nodes=1), PER_TOKEN)
