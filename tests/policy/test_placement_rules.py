"""Which node a task goes to, in situations that can be followed by hand, and the split of a separated cluster."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.policy.events import GroupOffered, Place, RequestArrived, StageFinished, TaskFinished
from lemix_hpc.policy.latency import Affine, LatencyModel
from lemix_hpc.policy.placements import PLACEMENTS
from lemix_hpc.policy.rules import SchedulerConfig, Split
from lemix_hpc.policy.scheduler import Scheduler

splits = st.integers(2, 12).flatmap(lambda nodes: st.builds(Split.of, st.just(nodes), st.integers(1, nodes - 1)))

# A token takes 10 ms on each of two stages, and a training token 10 ms forward and 20 ms backward.
SECONDS = LatencyModel((Affine(0.0, 0.01, 0.0),) * 2, (Affine(0.0, 0.02, 0.0),) * 2)
TWICE_AS_FAST = LatencyModel(
    tuple(form.scaled(0.5) for form in SECONDS.forward), tuple(form.scaled(0.5) for form in SECONDS.backward)
)
BASE = SchedulerConfig(nodes=3, admission="none", order="fcfs")


class Cluster:
    """A scheduler whose tasks are numbered as they come. Stages report only what a test says."""

    def __init__(self, config: SchedulerConfig, *models: LatencyModel, kinds: tuple[int, ...] = ()) -> None:
        self.scheduler = Scheduler(config, models or SECONDS, kinds)
        self.number = 0

    def request(self, time: float, tokens: int, output: int = 0) -> int:
        """The node of a request."""
        self.number += 1
        (place,) = self.scheduler.handle(RequestArrived(time, self.number - 1, tokens, output))
        assert isinstance(place, Place)
        return place.node

    def group(self, time: float, tokens: int, size: int = 1) -> list[int]:
        """The nodes of what a group lets go."""
        tasks = tuple(range(self.number, self.number + size))
        self.number += size
        decisions = self.scheduler.handle(GroupOffered(time, 0, tasks, 1, (tokens,) * size))
        return [decision.node for decision in decisions if isinstance(decision, Place)]

    def through_first_stage(self, time: float, node: int, task: int) -> list[int]:
        """The nodes of what follows a micro-batch that has left the first stage."""
        decisions = self.scheduler.handle(StageFinished(time, node, 0, task, time - 0.1, time))
        return [decision.node for decision in decisions if isinstance(decision, Place)]


def cluster(
    placement: str,
    *models: LatencyModel,
    kinds: tuple[int, ...] = (),
    knobs: Mapping[str, float] | None = None,
    **settings: Any,
) -> Cluster:
    return Cluster(replace(BASE, placement=placement, knobs=knobs or {}, **settings), *models, kinds=kinds)


def set_knob(cluster_: Cluster, **knobs: float) -> None:
    """Change what the scores of tasks that are still to come are made with."""
    rules = cluster_.scheduler.rules
    cluster_.scheduler.rules = rules._replace(knobs=rules.knobs._replace(**knobs))


# All of them


@pytest.mark.parametrize("placement", sorted(set(PLACEMENTS) - {"random"}))
def test_of_nodes_that_are_equal_the_first_one_is_taken(placement: str) -> None:
    assert cluster(placement).request(0.0, 100) == 0
    assert cluster(placement).group(0.0, 100) == [2 if placement == "separate" else 0]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_node_is_fed_one_group_at_a_time(placement: str) -> None:
    busy = cluster(placement)
    nodes = [node for _ in range(5) for node in busy.group(0.0, 100, size=2)]
    assert len(nodes) == len(set(nodes)) <= 3


# least-completion


def test_least_completion_goes_where_the_task_is_through_first() -> None:
    spread = cluster("least-completion")
    assert [spread.request(0.0, tokens) for tokens in (300, 100, 200, 50)] == [0, 1, 2, 1]


def test_least_completion_of_training_waits_for_what_is_there() -> None:
    spread = cluster("least-completion", serving_first=False)
    spread.request(0.0, 100)
    assert spread.group(0.0, 100) == [1]
    assert spread.request(0.0, 100) == 2


def test_requests_that_go_first_mind_no_training() -> None:
    assert [after_training(serving_first=first) for first in (True, False)] == [0, 1]


def after_training(*, serving_first: bool) -> int:
    trains = cluster("least-completion", serving_first=serving_first)
    trains.group(0.0, 100)
    return trains.request(0.0, 100)


def test_faster_nodes_get_more() -> None:
    mixed = cluster("least-completion", SECONDS, TWICE_AS_FAST, kinds=(0, 1, 0))
    # Twice as many, and one more because its pipeline is filled sooner.
    assert Counter(requests(mixed, 40)) == {0: 10, 1: 21, 2: 9}
    trains = cluster("least-completion", SECONDS, TWICE_AS_FAST, kinds=(0, 1, 0))
    assert [trains.group(0.0, 100) for _ in range(3)] == [[1], [0], [2]]


# lemix and lemix-paper


def test_lemix_fills_a_used_node_until_waiting_costs_more_than_opening_another() -> None:
    """The k-th request waits k - 1 seconds, which costs 0.15 (k - 3); a node that was never used costs 5."""
    assert requests(cluster("lemix"), 40) == [0] * 36 + [1] * 4


def test_lemix_goes_where_it_leaves_least_idle() -> None:
    """Both nodes are free at 17 s, after 1 s and 8 s on every stage; a third one was never used."""
    idle = cluster("lemix", knobs={"keep": 0.0, "lambda1": 10.0, "tau": 0.0})
    assert [idle.request(0.0, 100), idle.request(0.0, 800)] == [0, 1]
    set_knob(idle, keep=50.0)
    assert idle.request(17.0, 100) == 1


def test_lemix_trades_latency_for_fewer_nodes_by_lambda1() -> None:
    used = [len(set(requests(cluster("lemix", knobs={"lambda1": lambda1}), 60))) for lambda1 in (0.01, 0.15, 10.0)]
    assert used == [1, 2, 3]


def requests(cluster_: Cluster, count: int) -> list[int]:
    return [cluster_.request(0.0, 100) for _ in range(count)]


def test_lemix_keeps_requests_of_a_length_together_by_lambda2() -> None:
    assert [consistent(lambda2) for lambda2 in (0.0, 5.0)] == [0, 1]


def consistent(lambda2: float) -> int:
    """The node of a request of 90 tokens, when nodes got some of 300 and 310, and of 90 and 100 tokens; all is done."""
    sorted_ = cluster("lemix", nodes=2, knobs={"lambda1": 100.0, "tau": 0.0, "lambda2": 0.0})
    for task, (tokens, node) in enumerate([(300, 0), (90, 1), (310, 0), (100, 1)]):
        assert sorted_.request(10.0 * (task // 2), tokens) == node
    set_knob(sorted_, lambda2=lambda2)
    return sorted_.request(100.0, 90)


def test_lemix_as_published_prefers_the_longer_response() -> None:
    """The numerator of its score is negative: node 0 would answer in 4 s, the others in 2 s."""
    assert requests(cluster("lemix-paper"), 5) == [0] * 5


def test_lemix_as_published_still_trains_without_a_weight_of_the_response() -> None:
    """Every score is infinite then."""
    assert cluster("lemix-paper", knobs={"lambda1": 0.0}).group(0.0, 100) == [0]


# pack


def test_pack_leaves_nodes_alone_while_few_requests_come() -> None:
    packed = cluster("pack", t0=2.0)
    assert [packed.request(5.0 * number, 100) for number in range(50)] == [0] * 50


def test_pack_opens_a_node_when_requests_would_be_late() -> None:
    packed = cluster("pack", t0=2.0)
    assert set(requests(packed, 60)) == {0, 1, 2}


# Baselines


@given(splits, st.lists(st.tuples(st.booleans(), st.integers(1, 100)), max_size=20))
def test_separate_never_mixes(split: Split, tasks: list[tuple[bool, int]]) -> None:
    nodes = len(split.serving) + len(split.training)
    apart = cluster("separate", nodes=nodes, training_nodes=len(split.training))
    for training, tokens in tasks:
        if training:
            assert set(apart.group(0.0, tokens)) <= set(split.training)
        else:
            assert apart.request(0.0, tokens) in split.serving


def test_separate_goes_where_a_task_is_through_first_in_its_part() -> None:
    apart = cluster("separate", nodes=4)
    assert [apart.request(0.0, tokens) for tokens in (300, 100, 100)] == [0, 1, 1]
    assert [apart.group(0.0, 100), apart.group(0.0, 100), apart.group(0.0, 100)] == [[2], [3], []]


def test_round_robin_counts_requests_and_training_apart() -> None:
    turns = cluster("round-robin")
    assert [turns.request(0.0, 100), turns.request(0.0, 1)] == [0, 1]
    assert turns.group(0.0, 100) == [0]
    assert [turns.request(0.0, 100), turns.request(0.0, 1)] == [2, 0]
    assert turns.group(0.0, 100) == [1]


def test_round_robin_passes_over_nodes_that_are_being_fed_and_goes_on_behind_them() -> None:
    turns = cluster("round-robin")
    assert turns.group(0.0, 100, size=3) == [0]  # tasks 0 to 2
    assert turns.group(0.0, 100) == [1]  # 3
    assert turns.group(0.0, 100) == [2]  # 4
    assert turns.group(0.0, 100, size=2) == []  # 5 and 6
    assert turns.group(0.0, 100) == []  # 7
    assert turns.through_first_stage(1.0, 2, 4) == [2]  # 0 and 1 are being fed
    assert turns.through_first_stage(1.0, 1, 3) == [1]


def test_random_is_drawn_from_the_seed() -> None:
    drawn = [requests(cluster("random", seed=seed), 300) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(80 <= count <= 120 for count in Counter(drawn[0]).values())


def test_random_training_goes_to_nodes_that_are_free() -> None:
    for seed in range(20):
        drawn = cluster("random", seed=seed)
        assert sorted(node for _ in range(3) for node in drawn.group(0.0, 100, size=2)) == [0, 1, 2]


def test_least_utilised_counts_the_work_that_was_given_and_forgets_it() -> None:
    used = cluster("least-utilised")
    assert [used.request(0.0, tokens) for tokens in (300, 100, 200)] == [0, 1, 2]
    for task, node in enumerate((0, 1, 2)):
        used.scheduler.handle(TaskFinished(1.0, node, task))
    assert used.request(1.0, 50) == 1  # though all are idle now
    # 60 s, three memories, later what was given at first counts for little.
    assert used.request(61.0, 100) == 1
    assert used.request(61.0, 10) == 2


# The split


@given(splits)
def test_a_split_covers_all_nodes_once(split: Split) -> None:
    nodes = len(split.serving) + len(split.training)
    assert [*split.serving, *split.training] == list(range(nodes))


@given(splits)
def test_every_serving_node_has_one_source_of_weights_and_sources_share_the_work(split: Split) -> None:
    sources = [split.served_by(trainer) for trainer in split.training]
    assert Counter(node for served in sources for node in served) == Counter(split.serving)
    assert max(map(len, sources)) - min(map(len, sources)) <= 1


def test_half_of_the_nodes_train_unless_told_otherwise() -> None:
    assert Split.of(4, None) == Split(range(2), range(2, 4))
    assert Split.of(5, None) == Split(range(3), range(3, 5))
    assert Split.of(4, 1) == Split(range(3), range(3, 4))


@pytest.mark.parametrize(("nodes", "training_nodes"), [(1, None), (4, 4), (4, 5), (4, 0)])
def test_a_split_needs_both_parts(nodes: int, training_nodes: int | None) -> None:
    with pytest.raises(ValueError, match=rf"of {nodes} nodes cannot train while at least one serves"):
        Split.of(nodes, training_nodes)


# fill


def filling(**settings: Any) -> Cluster:
    """Paced to 1 s for each token, while all nodes train."""
    times = LatencyModel((Affine(0.1, 0.01, 0.0),) * 2, (Affine(0.1, 0.02, 0.0),) * 2)
    paced = cluster("fill", times, tpot=1.0, **settings)
    for _ in range(3):
        paced.group(0.0, 1)
    return paced


def test_requests_that_generate_go_where_others_do_until_that_node_has_no_room() -> None:
    """A pass takes 0.1 s and 10 ms for a token on each of two stages: paced to 1 s, so many fill 80 % of that."""
    paced = filling(oracle=True, ttft=1e3)
    nodes = [paced.request(0.0, 10, 20) for _ in range(45)]
    filled = nodes.index(1)
    # By then decode takes 0.2 + 0.02 n a second, and prompts their 0.2 s in every 60.
    assert 0.2 + 0.02 * filled + filled * 0.2 / 60 <= 0.8 < 0.2 + 0.02 * (filled + 1) + (filled + 1) * 0.2 / 60
    assert nodes == sorted(nodes), "one after the other"
    for task in range(3, 3 + filled):
        paced.scheduler.handle(TaskFinished(1.0, 0, task, output=20))
    assert paced.request(1.0, 10, 20) == nodes[-1]


def test_beyond_all_room_requests_go_where_least_is_served() -> None:
    paced = filling(ttft=1e3, knobs={"fill": 0.0})
    assert [paced.request(0.0, 10, 20) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_a_prompt_goes_on_to_the_next_node_if_it_would_wait_for_its_first_token_too_long() -> None:
    """Passes take 0.8 s with prompts in them, of which decode with n requests takes 0.2 + 0.02 n: one of 0.3 s fits."""
    paced = filling(oracle=True, ttft=3.0)
    assert [paced.request(0.0, 15, 20) for _ in range(5)] == [0, 0, 0, 0, 1]
    assert paced.request(0.0, 150, 20) == 2, "where least is served, if it is late everywhere"


def test_without_training_fill_is_least_completion() -> None:
    times = LatencyModel((Affine(0.1, 0.01, 0.0),) * 2, (Affine(0.1, 0.02, 0.0),) * 2)
    one, other = cluster("fill", times, ttft=9.0, tpot=1.0), cluster("least-completion", times, ttft=9.0, tpot=1.0)
    assert [one.request(0.0, 9, 5) for _ in range(9)] == [other.request(0.0, 9, 5) for _ in range(9)]


def test_without_a_pace_fill_is_least_completion() -> None:
    one, other = cluster("fill"), cluster("least-completion")
    assert [one.request(0.0, 100, 5) for _ in range(9)] == [other.request(0.0, 100, 5) for _ in range(9)]
    assert one.group(0.0, 100) == other.group(0.0, 100)
