"""When training micro-batches are let go, what admission holds back, and what the end of the allocation refuses."""

import math
from collections import defaultdict
from dataclasses import replace
from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.policy.events import (
    Decision,
    Event,
    GroupOffered,
    Place,
    Refuse,
    RequestArrived,
    RulesChanged,
    StageFinished,
    TaskFinished,
    Tick,
    TrainingClosed,
)
from lemix_hpc.policy.rules import Release, SchedulerConfig
from lemix_hpc.policy.scheduler import Scheduler
from tests.policy.toy import PER_TOKEN, ToyCluster, configs, constant, workloads

# Two stages: a forward takes 1 s and a backward 2 s on each.
LATENCY = constant(forward=1, backward=2)
OPEN = SchedulerConfig(nodes=1, placement="round-robin", admission="none")
SYNC = replace(OPEN, release="sync")


class Released:
    """A scheduler, and where it sends what."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.scheduler = Scheduler(config, LATENCY)
        self.first: list[tuple[int, int]] = []

    def offered(self, *tasks: int, time: float = 0.0) -> list[tuple[int, int]]:
        return self.sent(GroupOffered(time, tasks[0], tasks, 1, (8,) * len(tasks)))

    def passed(
        self, task: int, stage: int = 0, node: int = 0, time: float = 1.0, *, backward: bool = False
    ) -> list[tuple[int, int]]:
        return self.sent(StageFinished(time, node, stage, task, time - 1, time, backward))

    def sent(self, event: Event) -> list[tuple[int, int]]:
        """Tasks and their nodes."""
        decisions = self.scheduler.handle(event)
        return [(decision.task, decision.node) for decision in decisions if isinstance(decision, Place)]


# The release rules


def test_async_follows_the_first_stages_forward_and_crosses_groups() -> None:
    chain = Released(OPEN)
    assert chain.offered(0, 1) == [(0, 0)]
    assert chain.offered(2) == []
    assert chain.passed(0) == [(1, 0)]
    assert chain.passed(1) == [(2, 0)]


def test_async_waits_for_nothing_else() -> None:
    chain = Released(OPEN)
    chain.offered(0, 1)
    chain.sent(RequestArrived(0.0, 2, 8, 0))
    assert chain.passed(0, stage=1) == []
    assert chain.passed(0, backward=True) == []
    assert chain.passed(2) == []
    assert chain.passed(0) == [(1, 0)]


def test_sync_lets_a_group_go_at_once_and_the_next_behind_its_last_backward() -> None:
    groups = Released(SYNC)
    assert groups.offered(0, 1, 2) == [(0, 0), (1, 0), (2, 0)]
    assert groups.offered(3) == []
    for task in (0, 1, 2):
        assert groups.passed(task) == []
    for task in (0, 1):
        assert groups.passed(task, backward=True) == []
    assert groups.passed(2, stage=1, backward=True) == []
    assert groups.passed(2, backward=True) == [(3, 0)]


@pytest.mark.parametrize("placement", ["round-robin", "least-completion"])
def test_a_group_that_must_go_to_a_node_goes_there_and_waits_for_nothing_but_its_turn(placement: str) -> None:
    groups = Released(replace(SYNC, nodes=3, placement=placement))
    assert groups.sent(GroupOffered(0.0, 0, (0, 1), 1, (8, 8), node=2)) == [(0, 2), (1, 2)]
    assert groups.sent(GroupOffered(0.0, 1, (2,), 1, (8,), node=1)) == [(2, 1)]
    assert groups.sent(GroupOffered(0.0, 2, (3,), 1, (8,), node=2)) == [], "it is fed another"
    assert groups.offered(4) == [], "groups go in their order"
    assert groups.passed(1, node=2, time=9.0, backward=True) == [(3, 2), (4, 0)]


def test_a_report_that_is_overtaken_by_the_end_of_its_task_lets_go_what_follows() -> None:
    groups = Released(SYNC)
    groups.offered(0)
    groups.offered(1)
    assert groups.sent(TaskFinished(1.0, 0, 0)) == []
    assert groups.passed(0, backward=True) == [(1, 0)]


def test_lanes_limit_how_many_nodes_are_fed() -> None:
    lanes = Released(replace(OPEN, nodes=4, lanes=2))
    assert [lanes.offered(task, task + 1) for task in (0, 2, 4)] == [[(0, 0)], [(2, 1)], []]
    assert lanes.passed(2, node=1) == [(3, 1)]
    assert lanes.passed(3, node=1) == [(4, 2)]


def test_closing_drops_what_was_not_begun_and_lets_the_rest_end() -> None:
    chain = Released(OPEN)
    chain.offered(0, 1)
    chain.offered(2, 3)
    assert chain.scheduler.handle(TrainingClosed(0.5)) == []
    assert chain.passed(0) == [(1, 0)]
    assert chain.passed(1) == []


def test_closing_keeps_what_is_held_of_a_group_that_has_begun() -> None:
    held = Released(replace(SLACK, release="sync"))
    held.sent(RequestArrived(0.0, 0, 8, 0))
    assert held.offered(1, 2) == []
    held.scheduler.handle(TrainingClosed(0.5))
    assert held.sent(TaskFinished(2.0, 0, 0)) == [(1, 0), (2, 0)]


# Admission. A request takes 2 s; a micro-batch that does not yield can keep it waiting for 2 s on each stage.

SLACK = replace(OPEN, admission="slack", yield_training=False, t0=1.0, slo_factor=5.0, max_hold=10.0)


def after_a_request(config: SchedulerConfig) -> Released:
    """A cluster that was given a request and after it, at 0.5 s, the micro-batch 1."""
    released = Released(config)
    released.sent(RequestArrived(0.0, 0, 8, 0))
    released.first = released.offered(1, time=0.5)
    return released


def lets_go(config: SchedulerConfig) -> bool:
    return after_a_request(config).first == [(1, 0)]


def test_slack_covers_what_a_micro_batch_can_cost_or_it_is_held() -> None:
    assert [lets_go(replace(SLACK, slo_factor=limit)) for limit in (5.9, 6.0)] == [False, True]


def test_a_micro_batch_that_yields_costs_one_piece_on_every_stage() -> None:
    yielding = replace(SLACK, yield_training=True, pieces=16)  # 2 / 16 s twice
    assert [lets_go(replace(yielding, slo_factor=limit)) for limit in (2.2, 2.25)] == [False, True]


def test_without_serving_first_it_costs_a_forward_and_the_longer_pass_on_every_stage() -> None:
    mixed = replace(SLACK, serving_first=False)
    assert [lets_go(replace(mixed, slo_factor=limit)) for limit in (7.9, 8.0)] == [False, True]


def test_requests_that_miss_their_limit_anyhow_hold_nothing() -> None:
    assert lets_go(replace(SLACK, slo_factor=1.9))


def test_held_training_goes_when_slack_returns() -> None:
    held = after_a_request(SLACK)
    assert held.first == []
    assert held.passed(0, time=1.0) == []
    assert held.sent(TaskFinished(2.0, 0, 0)) == [(1, 0)]
    assert held.scheduler.next_tick == math.inf


def test_slack_returns_when_a_request_is_faster_than_expected() -> None:
    held = after_a_request(SLACK)
    assert held.sent(StageFinished(0.6, 0, 0, 0, 0.0, 0.5)) == []
    assert held.sent(StageFinished(0.9, 0, 1, 0, 0.5, 0.9)) == [(1, 0)]


def test_held_training_goes_at_its_tick_and_knows_since_when_it_might() -> None:
    held = after_a_request(SLACK)
    assert held.scheduler.next_tick == 10.5
    assert held.sent(Tick(10.4)) == []
    (place,) = held.scheduler.handle(Tick(10.5))
    assert isinstance(place, Place)
    assert (place.task, place.eligible, held.scheduler.next_tick) == (1, 0.5, math.inf)


@given(st.floats(0, 1e5), st.floats(1e-3, 1e3))
def test_no_rounding_keeps_training_from_going_at_its_tick(time: float, hold: float) -> None:
    held = Released(replace(SLACK, max_hold=hold))
    held.sent(RequestArrived(time, 0, 8, 0))
    assert held.offered(1, time=time) == []
    assert held.sent(Tick(held.scheduler.next_tick)) == [(1, 0)]


def test_without_admission_nothing_is_held() -> None:
    assert lets_go(replace(SLACK, admission="none"))


def test_held_training_follows_rules_that_change() -> None:
    held = after_a_request(SLACK)
    assert held.first == []
    assert held.sent(RulesChanged(1.0, "slack", 0.75)) == [] and held.scheduler.next_tick == 1.25
    assert held.sent(RulesChanged(1.1, "none", 10.0)) == [(1, 0)]


def test_other_nodes_requests_hold_nothing() -> None:
    apart = Released(replace(SLACK, nodes=2))
    apart.sent(RequestArrived(0.0, 0, 8, 0))
    apart.scheduler.state.counters[0]["training_turn"] = 1
    assert apart.offered(1) == [(1, 1)]


def test_the_papers_rule_puts_training_back_while_it_would_answer_late_and_requests_are_there() -> None:
    paper = replace(SLACK, admission="paper", serving_first=False)
    assert [lets_go(replace(paper, slo_factor=limit)) for limit in (2.4, 2.5)] == [False, True]  # through at 3 s
    assert Released(replace(paper, slo_factor=0.1)).offered(0) == [(0, 0)]
    held = after_a_request(replace(paper, slo_factor=0.1))
    assert held.first == []
    assert held.sent(TaskFinished(2.0, 0, 0)) == [(1, 0)]


# The end of the allocation


def test_a_group_that_would_outlive_the_allocation_is_refused_as_a_whole_and_keeps_no_lane() -> None:
    """Alone a micro-batch takes 6 s; the second one of a group adds 3 s, the longest that a stage is busy for one."""
    for end, goes in ((8.9, False), (9.0, True)):
        chain = Released(replace(OPEN, end=end))
        decisions: list[Decision] = chain.scheduler.handle(GroupOffered(0.0, 0, (0, 1), 1, (8, 8)))
        assert ([Refuse(0), Refuse(1)] == decisions) is not goes
    assert Released(replace(OPEN, end=6.0)).offered(0) == [(0, 0)]
    small = Released(replace(OPEN, end=6.5))
    assert small.offered(0, 1) == []
    assert small.offered(2) == [(2, 0)]


def test_every_micro_batch_of_a_group_counts_with_its_own_length() -> None:
    """The first one takes 0.51 s forward and 1.02 s backward on each stage, and the second one 2.5 and 5 s."""
    for end, goes in ((10.5, False), (10.6, True)):
        scheduler = Scheduler(replace(OPEN, end=end), PER_TOKEN)
        decisions = scheduler.handle(GroupOffered(0.0, 0, (0, 1), 1, (1, 200)))
        assert isinstance(decisions[0], Place) is goes


def test_a_group_behind_others_is_looked_at_when_its_turn_comes() -> None:
    chain = Released(replace(OPEN, end=8.0))
    assert chain.offered(0) == [(0, 0)]
    assert chain.scheduler.handle(GroupOffered(0.0, 1, (1,), 1, (8,))) == []
    assert chain.scheduler.handle(StageFinished(3.0, 0, 0, 0, 2.0, 3.0)) == [Refuse(1)]


def test_a_request_that_would_outlive_the_allocation_is_refused_and_delays_nobody() -> None:
    """Each takes 1 s on each of two stages: the first one ends at 10 s and the second one would at 11 s."""
    scheduler = Scheduler(replace(OPEN, end=10.5), LATENCY)
    assert isinstance(scheduler.handle(RequestArrived(8.0, 0, 8, 0))[0], Place)
    assert scheduler.handle(RequestArrived(8.0, 1, 8, 0)) == [Refuse(1)]
    assert scheduler.handle(TaskFinished(8.1, 0, 0)) == []
    assert isinstance(scheduler.handle(RequestArrived(8.5, 2, 8, 0))[0], Place)
    assert scheduler.handle(RequestArrived(8.6, 3, 8, 0)) == [Refuse(3)]


# Whole workloads


@given(configs, workloads())
def test_no_micro_batch_is_lost_or_sent_twice_and_none_is_held_too_long(
    config: SchedulerConfig, events: list[Event]
) -> None:
    cluster = ToyCluster(Scheduler(config, PER_TOKEN), PER_TOKEN, events)
    micro_batches = {task for event in events if isinstance(event, GroupOffered) for task in event.tasks}
    assert micro_batches <= cluster.places.keys()
    for task in micro_batches:
        eligible = cluster.places[task].eligible
        assert eligible <= cluster.placed_at[task] <= eligible + config.max_hold
        if config.admission == "none":
            assert cluster.placed_at[task] == eligible


@given(configs, workloads())
def test_groups_stay_on_a_node_and_follow_one_another_by_the_rule(config: SchedulerConfig, events: list[Event]) -> None:
    cluster = ToyCluster(Scheduler(config, PER_TOKEN), PER_TOKEN, events)
    group_of = {task: event.group for event in events if isinstance(event, GroupOffered) for task in event.tasks}
    sizes = {event.group: len(event.tasks) for event in events if isinstance(event, GroupOffered)}
    nodes: dict[int, list[int]] = defaultdict(list)
    for task, place in cluster.places.items():
        if task in group_of:
            nodes[place.node].append(task)
    leaves = {(r.task, r.backward): r.end for r in cluster.log if r.stage == 0}
    assert sorted(task for tasks in nodes.values() for task in tasks) == sorted(group_of)
    for tasks in nodes.values():
        groups = [list(members) for _, members in groupby(tasks, group_of.__getitem__)]
        for members in groups:
            assert members == list(range(members[0], members[0] + sizes[group_of[members[0]]]))
        for before, after in pairwise(tasks):
            if config.release == "async":
                assert cluster.places[after].eligible >= leaves[before, False]
            elif group_of[before] != group_of[after]:
                assert cluster.places[after].eligible >= leaves[before, True]
            else:
                assert cluster.places[after].eligible == cluster.places[before].eligible


@given(configs, workloads(), st.floats(0, 30))
def test_closing_drops_whole_groups_and_nothing_that_has_begun(
    config: SchedulerConfig, events: list[Event], time: float
) -> None:
    cluster = ToyCluster(
        Scheduler(config, PER_TOKEN), PER_TOKEN, [e for e in events if e.time < time] + [TrainingClosed(time)]
    )
    for event in events:
        if isinstance(event, GroupOffered) and event.time < time:
            assert len({task in cluster.finished for task in event.tasks}) == 1
            if event.tasks[0] in cluster.places:
                assert cluster.places[event.tasks[0]].eligible <= time


@given(configs, workloads(), st.floats(1, 40))
def test_before_the_end_of_the_allocation_groups_go_or_are_refused_as_a_whole(
    config: SchedulerConfig, events: list[Event], end: float
) -> None:
    cluster = ToyCluster(Scheduler(replace(config, end=end), PER_TOKEN), PER_TOKEN, events)
    assert sorted([*cluster.places, *cluster.refused]) == sorted(cluster.forward)
    for event in events:
        if isinstance(event, GroupOffered):
            assert len({task in cluster.places for task in event.tasks}) == 1


@pytest.mark.parametrize("release", ["async", "sync"])
def test_the_end_of_a_task_that_has_ended_is_ignored(release: Release) -> None:
    chain = Released(replace(OPEN, release=release))
    chain.offered(0)
    assert chain.sent(TaskFinished(1.0, 0, 0)) == []
    assert chain.sent(TaskFinished(1.0, 0, 0)) == []
