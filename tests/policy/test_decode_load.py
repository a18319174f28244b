"""What paced decode takes of nodes, kept as requests come and go: the same as from scratch, and what placements go by."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lemix_hpc.policy.decode_load import PROMPT_MEMORY, load, own_load
from lemix_hpc.policy.events import Place, RequestArrived, TaskFinished
from lemix_hpc.policy.explain import request_forecasts
from lemix_hpc.policy.latency import Affine, LatencyModel, Shape
from lemix_hpc.policy.rules import SchedulerConfig
from lemix_hpc.policy.scheduler import FIRST_GUESS, Scheduler

TPOT = 0.05
SLOW = LatencyModel((Affine(3e-3, 27e-6, 4e-9, 25e-9),) * 2, (Affine(6e-3, 54e-6, 8e-9),) * 2)
FAST = LatencyModel(tuple(form.scaled(0.5) for form in SLOW.forward), SLOW.backward)
KINDS = (0, 1, 0)


def scheduler(placement: str, **settings_: Any) -> Scheduler:
    config = SchedulerConfig(nodes=3, placement=placement, t0=1.0, **settings_)
    return Scheduler(config, [SLOW, FAST], KINDS)


def pass_seconds(node: int, requests: int, cached: float) -> float:
    return sum((SLOW, FAST)[KINDS[node]].forward_times(Shape(requests, requests, cached)))


def prompt_seconds(node: int, prompt: int) -> float:
    model = (SLOW, FAST)[KINDS[node]]
    return sum(model.forward_times(Shape.of((prompt,)))) - sum(model.forward_times(Shape(0, 0)))


Coming = tuple[float, int, int]
"""A gap [s], a prompt and what it asks for; an output of 0 ends the oldest request instead, if there is one."""
coming: st.SearchStrategy[Coming] = st.tuples(
    st.sampled_from([0.0, 0.01, 0.3]), st.integers(1, 3000), st.sampled_from([0, 1, 2, 90])
)


@settings(max_examples=40)
@given(st.lists(coming, min_size=10, max_size=60))
def test_the_load_that_is_kept_is_the_one_from_scratch(story: list[Coming]) -> None:
    told, now = scheduler("fill", tpot=TPOT), 0.0
    here: list[tuple[int, int, int, int]] = []
    came: list[tuple[float, int, int]] = []
    for task, (gap, prompt, output) in enumerate(story):
        now += gap
        if output == 0 and here:
            old, node, _, _ = here.pop(0)
            told.handle(TaskFinished(now, node, old))
        else:
            (place,) = told.handle(RequestArrived(now, task, prompt, max(1, output)))
            assert isinstance(place, Place)
            here.append((task, place.node, prompt, output))
            came.append((now, place.node, prompt))
        for node in range(3):
            prompts = [tokens for _, at, tokens, asked in here if at == node and asked > 1]
            requests = len(prompts) + 1
            seconds = pass_seconds(node, requests, sum(prompts) + requests * FIRST_GUESS / 2)
            memory = PROMPT_MEMORY * TPOT
            lately = sum(
                prompt_seconds(node, tokens) * math.exp((t - now) / memory) for t, at, tokens in came if at == node
            )
            kept = load(told.state, told.rules, node, now)
            assert kept == pytest.approx((seconds + lately / PROMPT_MEMORY) / TPOT, rel=1e-9)


def test_a_prompt_adds_its_pass_and_its_place_in_the_cache() -> None:
    told = scheduler("fill", tpot=TPOT)
    for node in range(3):
        cached = pass_seconds(node, 1, 900) - pass_seconds(node, 1, 0)
        added = (cached + prompt_seconds(node, 900) / PROMPT_MEMORY) / TPOT
        assert own_load(told.state, told.rules, node, 900) == pytest.approx(added)


def test_what_is_learned_of_stage_times_reaches_nodes_that_get_nothing() -> None:
    told = scheduler("fill", tpot=TPOT)
    before = told.state.nodes["pass_seconds"].copy()
    told.state.times.linear[:] *= 2.0
    for task in range(3):
        told.handle(RequestArrived(0.0, task, 1, 1))
    assert told.state.nodes["pass_seconds"] == pytest.approx(2.0 * before)


@settings(max_examples=25)
@given(
    st.sampled_from(["fill", "least-completion", "lemix", "least-utilised"]),
    st.sampled_from([0.0, TPOT]),
    st.lists(coming, min_size=20, max_size=80),
)
def test_the_node_with_the_best_score_is_chosen(placement: str, tpot: float, story: list[Coming]) -> None:
    """Though rows are shared by nodes with batches of one size, and `fill` looks at no forecast."""
    told, now = scheduler(placement, tpot=tpot, batch_requests=3), 0.0
    for task, (gap, prompt, output) in enumerate(story):
        now += gap
        arrived = RequestArrived(now, task, prompt, output)
        scores = [forecast.score for forecast in request_forecasts(told, arrived)]
        (place,) = told.handle(arrived)
        assert isinstance(place, Place)
        assert place.node == int(np.argmax(scores))
