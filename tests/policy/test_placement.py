from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.policy.forecast import Path
from lemix_hpc.policy.placement import Candidate, LeastCompletion, RoundRobin, Separate, Split


def serving(node: int, end: float) -> Candidate:
    return Candidate(node, Path(release=0.0, fb=(0.0,), fe=(end,)))


def training(node: int, forward_end: float, backward_end: float) -> Candidate:
    return Candidate(node, Path(0.0, (0.0,), (forward_end,), (forward_end,), (backward_end,)))


ends = st.lists(st.integers(0, 5).map(float), min_size=2, max_size=6)
splits = st.integers(2, 12).flatmap(lambda nodes: st.builds(Split.of, st.just(nodes), st.integers(1, nodes - 1)))


@given(ends)
def test_least_completion_takes_the_lowest_of_the_nodes_that_end_first(ends: list[float]) -> None:
    choice = LeastCompletion().choose([serving(node, end) for node, end in enumerate(ends)], training=False)
    assert choice.node == ends.index(min(ends))


def test_least_completion_of_training_looks_at_the_end_of_its_backward() -> None:
    candidates = [training(0, forward_end=1.0, backward_end=9.0), training(1, forward_end=2.0, backward_end=8.0)]
    assert LeastCompletion().choose(candidates, training=True).node == 1


@given(st.integers(1, 6), st.integers(0, 40), st.randoms(use_true_random=False))
def test_round_robin_gives_every_node_its_turn_whatever_is_mixed_in(nodes: int, turns: int, random) -> None:
    placement = RoundRobin(nodes)
    candidates = [serving(node, random.random()) for node in range(nodes)]
    taken = {True: [], False: []}
    for _ in range(turns):
        kind = random.random() < 0.5
        taken[kind].append(placement.choose(candidates, training=kind).node)
    for sequence in taken.values():
        assert sequence == [turn % nodes for turn in range(len(sequence))]


def test_round_robin_passes_over_nodes_that_are_no_candidates_and_goes_on_behind_them() -> None:
    placement = RoundRobin(4)
    chosen = [
        placement.choose([serving(node, 1.0) for node in free], training=True).node for free in ([2, 3], [0, 1, 2])
    ]
    assert chosen == [2, 0]  # node 3 is next but busy


@given(splits, st.booleans(), st.data())
def test_separate_never_mixes(split: Split, kind: bool, data: st.DataObject) -> None:
    nodes = len(split.serving) + len(split.training)
    times = data.draw(st.lists(st.floats(0, 9), min_size=nodes, max_size=nodes))
    choice = Separate(split).choose([serving(node, end) for node, end in enumerate(times)], training=kind)
    part = split.training if kind else split.serving
    assert choice.node in part
    assert choice.path.completion == min(times[node] for node in part)


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
