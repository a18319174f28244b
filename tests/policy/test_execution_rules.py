import math
from itertools import permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.policy.execution_rules import (
    AHEAD,
    BACKWARD,
    CLOSE,
    COMMIT,
    END,
    FORWARD,
    LARGEST_DEBT,
    MOST_IN_FLIGHT,
    NOTHING,
    OFFER,
    SERVE,
    WAIT,
    debt_after,
    forward_limit,
    may_form_batch,
    pick,
    reports_ahead,
    supply_training,
)

NEVER = math.inf
# From first to last: nobody waits for training, and what frees memory goes before what takes it.
SERVING_FIRST = [SERVE, COMMIT, BACKWARD, FORWARD]
TRAINING_OWED = [COMMIT, BACKWARD, FORWARD, SERVE]


@pytest.mark.parametrize(("owed", "order"), [(False, SERVING_FIRST), (True, TRAINING_OWED)])
def test_the_first_of_what_is_ready_is_picked_whenever_it_came(owed: bool, order: list[int]) -> None:
    for serve, commit, backward, forward in product([NEVER, 1.0, 2.0, 3.0], repeat=4):
        readiness = {SERVE: serve, COMMIT: commit, BACKWARD: backward, FORWARD: forward}
        ready = [kind for kind in order if readiness[kind] < NEVER]
        assert pick(serve, commit, backward, forward, True, owed) == (ready[0] if ready else NOTHING)


def test_without_serving_first_work_runs_in_the_order_in_which_it_became_ready() -> None:
    for times in permutations([1.0, 2.0, 3.0, NEVER]):
        serve, commit, backward, forward = times
        first = times.index(1.0) + 1
        if first == FORWARD and backward < NEVER:
            first = BACKWARD  # the oldest of training, but a backward goes before a forward
        assert pick(serve, commit, backward, forward, False, False) == first


def test_of_work_that_became_ready_at_once_training_goes_first() -> None:
    assert pick(1.0, 1.0, 1.0, 1.0, False, False) == COMMIT
    assert pick(1.0, NEVER, 1.0, 1.0, False, False) == BACKWARD
    assert pick(1.0, NEVER, NEVER, 1.0, False, False) == FORWARD


@pytest.mark.parametrize("serving_first", [False, True])
def test_training_that_is_owed_time_goes_before_serving_that_came_earlier(serving_first: bool) -> None:
    assert pick(1.0, NEVER, NEVER, 2.0, serving_first, True) == FORWARD
    assert pick(1.0, NEVER, NEVER, NEVER, serving_first, True) == SERVE


@given(
    st.floats(0.01, 0.99),
    st.lists(st.tuples(st.floats(0.0, 0.02), st.floats(0.0, 0.02)), max_size=60),
)
def test_what_is_owed_is_the_claim_less_what_training_got(share: float, work: list[tuple[float, float]]) -> None:
    debt, served, trained = 0.0, 0.0, 0.0
    for serving, training in work:
        debt = debt_after(debt, share, serving, training)
        served, trained = served + serving, trained + training
        assert abs(debt) <= LARGEST_DEBT
        exact = share * (served + trained) - trained
        if abs(debt) == LARGEST_DEBT:
            break  # more is forgotten
        assert debt == pytest.approx(exact, abs=1e-12)


def test_training_without_a_claim_is_never_owed_anything() -> None:
    assert debt_after(0.0, 0.0, served=5.0, trained=0.0) == 0.0
    assert debt_after(0.0, 0.0, served=0.0, trained=5.0) == -LARGEST_DEBT


@pytest.mark.parametrize(("stage", "limit"), [(0, 4), (1, 3), (3, 1)])
def test_1f1b_keeps_one_micro_batch_for_each_stage_from_here_on(stage: int, limit: int) -> None:
    assert forward_limit(stage, 4, group_size=16, gpipe=False) == limit


@pytest.mark.parametrize("stage", range(4))
def test_gpipe_keeps_the_whole_group(stage: int) -> None:
    assert forward_limit(stage, 4, group_size=16, gpipe=True) == 16


@pytest.mark.parametrize(
    ("stage", "backward", "flush", "ahead"),
    [
        (0, True, False, False),
        (1, False, False, True),
        (2, False, False, False),
        (2, True, False, True),
        (1, True, True, False),
    ],
)
def test_later_stages_report_updates_ahead_where_no_pass_to_come_needs_the_old_weights(
    stage: int, backward: bool, flush: bool, ahead: bool
) -> None:
    assert reports_ahead(stage, 3, backward, flush) == ahead


@pytest.mark.parametrize("generates", [False, True])
def test_a_batch_waits_behind_the_one_that_runs_and_no_more(generates: bool) -> None:
    allowed = [may_form_batch(generates, at_first, at_first, 0, 4, False) for at_first in range(AHEAD + 2)]
    assert allowed == [True] * AHEAD + [False] * 2


def test_prompts_fill_what_waits_between_stages_and_tokens_only_the_stages() -> None:
    def generating(paced: bool) -> list[bool]:
        return [may_form_batch(True, 0, batches, batches, 2, paced) for batches in range(5)]

    assert may_form_batch(False, 0, MOST_IN_FLIGHT - 1, 0, 2, False)
    assert not may_form_batch(False, 0, MOST_IN_FLIGHT, 0, 2, False)
    assert generating(paced=False) == [True] * 3 + [False] * 2, "one runs on each stage, and one waits"
    assert generating(paced=True) == [True] * 2 + [False] * 3, "training fills the rest, and tokens come sooner"
    assert may_form_batch(False, 0, 3, 3, 2, False), "a prompt alone does not come back"


@pytest.mark.parametrize(
    ("over", "exhausted", "offered", "asked"),
    [
        (False, False, 2, OFFER),
        (False, False, 3, WAIT),
        (False, True, 1, WAIT),
        (False, True, 0, END),
        (True, False, 0, CLOSE),
        (True, True, 2, CLOSE),
    ],
)
def test_training_is_offered_ahead_and_ends_with_serving_or_its_amount(
    over: bool, exhausted: bool, offered: int, asked: int
) -> None:
    assert supply_training(over, exhausted, offered, ahead=3) == asked
