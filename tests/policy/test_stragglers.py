"""Nodes that differ from others of their kind: which ones are found, named and learned apart, and which never."""

import random
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lemix_hpc.policy.drift import MEMORY
from lemix_hpc.policy.events import PassKind, PassMeasured, Place, RequestArrived
from lemix_hpc.policy.latency import Affine, LatencyModel, Shape
from lemix_hpc.policy.rules import SchedulerConfig
from lemix_hpc.policy.scheduler import Scheduler
from lemix_hpc.policy.stragglers import LONG_S

TRUE = Affine(3.1e-3, 2.7e-5, 3.8e-9, 2.5e-8)
PROMPT = Shape.of([200])
EACH_S = 0.1
"""Between two passes of a stage."""


def scheduler_of(nodes: int, believed: Affine = TRUE, kinds: Sequence[int] = ()) -> Scheduler:
    model = LatencyModel((believed,) * 2, (believed,) * 2)
    models = [model] * (1 + max(kinds, default=0))
    return Scheduler(SchedulerConfig(nodes, placement="least-completion"), models, kinds)


def passes(
    seconds: float, slow: dict[tuple[int, int], float], nodes: int, since: float = 0.0, noise: float = 0.1
) -> Iterator[PassMeasured]:
    """Prompts on all nodes and stages; those of `slow` (node, stage) take so many times as long."""
    draw = random.Random(7)
    for turn in range(int(seconds / EACH_S)):
        for node in range(nodes):
            for stage in (0, 1):
                shape = Shape.of([draw.randint(10, 500)])
                took = TRUE.seconds(shape) * slow.get((node, stage), 1.0) * draw.uniform(1 - noise, 1 + noise)
                yield PassMeasured(since + turn * EACH_S, node, stage, "serve", shape, took)


def tell(scheduler: Scheduler, events: Iterator[PassMeasured]) -> None:
    for event in events:
        assert scheduler.handle(event) == []


def test_a_slow_stage_is_named_after_a_while_and_its_node_gets_less() -> None:
    scheduler = scheduler_of(4)
    tell(scheduler, passes(MEMORY * EACH_S + LONG_S - 2, {(2, 1): 2.0}, 4))
    assert scheduler.stragglers == []
    tell(scheduler, passes(60, {(2, 1): 2.0}, 4, since=MEMORY * EACH_S + LONG_S - 2))
    (straggler,) = scheduler.stragglers
    assert (straggler.node, straggler.stage, straggler.until_s) == (2, 1, None)
    assert straggler.ratio == pytest.approx(2.0, rel=0.1)
    assert straggler.since_s == pytest.approx(MEMORY * EACH_S, abs=4 * EACH_S)
    responses: dict[int, float] = {}
    for number in range(4):
        (place,) = scheduler.handle(RequestArrived(1e3, number, 200, 0))
        assert isinstance(place, Place)
        responses.setdefault(place.node, place.response)
    once = TRUE.seconds(PROMPT)
    assert [responses[node] for node in (0, 1, 3)] == pytest.approx([2 * once] * 3, rel=0.1)
    assert responses.get(2, 3 * once) == pytest.approx(3 * once, rel=0.1)


def test_it_is_over_once_the_stage_is_as_fast_as_the_others() -> None:
    scheduler = scheduler_of(3)
    tell(scheduler, passes(90, {(0, 0): 2.0}, 3))
    tell(scheduler, passes(90, {}, 3, since=90))
    (straggler,) = scheduler.stragglers
    assert straggler.until_s is not None and 90 < straggler.until_s < 180
    (place,) = scheduler.handle(RequestArrived(1e3, 0, 200, 0))
    assert isinstance(place, Place)
    assert place.response == pytest.approx(2 * TRUE.seconds(PROMPT), rel=0.1)


def test_what_lasts_shorter_is_nothing() -> None:
    scheduler = scheduler_of(3)
    tell(scheduler, passes(0.8 * LONG_S, {(0, 0): 2.0}, 3))
    tell(scheduler, passes(120, {}, 3, since=0.8 * LONG_S))
    assert scheduler.stragglers == [] and scheduler.memory.apart == ()


def test_of_two_nodes_the_slower_one_is_named_and_learned_apart() -> None:
    scheduler = scheduler_of(2)
    tell(scheduler, passes(150, {(1, 0): 1.5, (1, 1): 1.5}, 2))
    assert [(straggler.node, straggler.stage) for straggler in scheduler.stragglers] == [(1, 0), (1, 1)]
    assert scheduler.memory.apart == (1,)
    linear, kind_of = scheduler.state.times.linear, scheduler.state.times.kind_of
    fast, slow = (linear[kind_of[node], 2, 0, 0] for node in (0, 1))
    assert slow / fast == pytest.approx(1.5, rel=0.1)


def test_a_faster_node_is_learned_apart_and_no_straggler() -> None:
    scheduler = scheduler_of(4)
    tell(scheduler, passes(150, {(3, 0): 0.5, (3, 1): 0.5}, 4))
    assert scheduler.stragglers == [] and scheduler.memory.apart == (3,)


def test_nodes_of_another_kind_are_not_compared_with() -> None:
    scheduler = scheduler_of(4, kinds=[0, 0, 1, 1])
    tell(scheduler, passes(150, {(node, stage): 3.0 for node in (2, 3) for stage in (0, 1)}, 4))
    assert scheduler.stragglers == [] and scheduler.memory.apart == ()


wrong = st.tuples(*[st.sampled_from([1 / 3, 1.0, 3.0])] * 4)


@settings(max_examples=20)
@given(wrong, st.integers(0, 2**32), st.integers(2, 4))
def test_files_that_are_wrong_and_nodes_that_do_other_work_make_no_stragglers(
    gains: tuple[float, ...], seed: int, nodes: int
) -> None:
    """One node decodes, the others train and score: each shape is predicted wrong in its own way."""
    scheduler, draw = scheduler_of(nodes, TRUE.with_gains(gains)), random.Random(seed)
    for turn in range(300):
        for node in range(nodes):
            decodes = draw.random() < (0.9 if node == 0 else 0.1)
            shape = Shape.of([1] * 8, [draw.randint(20, 400)] * 8) if decodes else Shape.of([draw.randint(10, 900)])
            kind: PassKind = "serve" if decodes else draw.choice(["serve", "forward"])
            took = TRUE.seconds(shape) * draw.uniform(0.7, 1.3)
            scheduler.handle(PassMeasured(0.5 * turn, node, 0, kind, shape, took))
    assert scheduler.stragglers == []


def test_what_was_learned_apart_is_remembered() -> None:
    scheduler = scheduler_of(3)
    tell(scheduler, passes(150, {(0, 0): 2.0}, 3))
    memory = scheduler.memory
    assert memory.apart == (0,) and len(memory.lessons) == 2
    other = scheduler_of(3)
    other.recall(memory)
    assert other.memory == memory
    assert (other.state.times.linear == scheduler.state.times.linear).all()
    assert (other.state.times.kind_of == scheduler.state.times.kind_of).all()
    assert not other.drifts
