import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.policy.pacing import (
    AS_SOON_AS_POSSIBLE,
    FIRST_MARGIN,
    FIRST_RESERVE,
    LARGEST_MARGIN,
    LATE_ALLOWED,
    NO_PATIENCE,
    Pace,
    batch_due,
    idle_due,
    longest_batch,
    longest_in_time,
    margin_after,
    next_deadline,
    prompts_due,
    room_for_batch,
    seconds_through,
    shared_seconds,
    token_deadline,
)

PACE = Pace(ttft=1.0, tpot=0.05)


def test_the_first_token_has_its_own_deadline_and_each_next_one_counts_from_the_first() -> None:
    assert token_deadline(PACE, 3.0, math.nan, 0) == 4.0
    assert token_deadline(PACE, 3.0, 3.2, 1) == pytest.approx(3.25)
    # However early the tokens between came, the eleventh is due ten limits after the first.
    assert token_deadline(PACE, 3.0, 3.2, 10) == pytest.approx(3.7)


def test_a_batch_begins_in_time_for_its_first_deadline() -> None:
    assert batch_due(4.0, 0.3, 0.05) == pytest.approx(3.65)
    assert 2.0 < idle_due(PACE, 2.0, 2.0) < 2.0 + PACE.tpot
    assert idle_due(PACE, math.inf, 2.0) == idle_due(PACE, math.inf, -math.inf) == math.inf
    none_left = 20.0 + NO_PATIENCE * PACE.tpot
    assert idle_due(PACE, 20.0, 2.0) == idle_due(PACE, 20.0, -math.inf) == none_left


def test_without_limits_everything_is_due_as_soon_as_it_comes() -> None:
    assert batch_due(token_deadline(AS_SOON_AS_POSSIBLE, 3.0, math.nan, 0), 0.1, 0.0) < 3.0
    assert margin_after(AS_SOON_AS_POSSIBLE, 0.0, True) == 0.0


def test_the_margin_rests_where_few_passes_are_late() -> None:
    rng, margin, late = random.Random(0), FIRST_MARGIN * PACE.tpot, 0
    for _ in range(20_000):
        missed = rng.expovariate(1 / 0.02) > margin
        late += missed
        margin = margin_after(PACE, margin, missed)
    assert late / 20_000 == pytest.approx(LATE_ALLOWED, rel=0.05)


def test_the_margin_has_an_end() -> None:
    margin = 0.0
    for _ in range(100):
        margin = margin_after(PACE, margin, True)
    assert margin == LARGEST_MARGIN * PACE.tpot
    for _ in range(10_000):
        margin = margin_after(PACE, margin, False)
    assert margin == 0.0


seconds = st.floats(0.0, 10.0)


@given(deadline=seconds, alone=seconds, added=seconds, margin=seconds)
def test_batch_requests_move_no_deadline(deadline: float, alone: float, added: float, margin: float) -> None:
    together = shared_seconds(PACE, alone, alone + added)
    without, with_them = batch_due(deadline, alone, margin), batch_due(deadline, together, margin)
    assert with_them <= without, "a batch that is longer begins earlier"
    room = room_for_batch(PACE, alone, deadline, with_them)
    assert with_them + room <= deadline + 1e-9, "and ends before the same deadline"
    assert alone <= together <= alone + added and together <= longest_batch(PACE, alone)
    if added == 0.0:
        assert with_them == without


def test_requests_in_a_batch_are_due_again_after_it() -> None:
    assert next_deadline(PACE, 3.0, math.nan, 0, partial=True, ends=3.5) == 4.0
    assert next_deadline(PACE, 3.0, math.nan, 0, partial=False, ends=3.5) == pytest.approx(3.55)
    assert next_deadline(PACE, 3.0, 3.2, 4, partial=False, ends=3.5) == token_deadline(PACE, 3.0, 3.2, 5)


def test_cut_prompts_are_through_after_as_many_batches_as_it_takes() -> None:
    assert seconds_through(0.04, 0.01, 0.03) == 0.03, "what fits is not cut"
    # 0.1 s of prompts, 0.03 in each batch beside 0.01 of tokens.
    assert seconds_through(0.04, 0.01, 0.11) == pytest.approx(0.1 + 4 * 0.01)
    assert prompts_due(PACE, 4.0, 0.14, 0.0) == pytest.approx(4.0 - 0.14 - FIRST_RESERVE * PACE.tpot)
    assert prompts_due(PACE, 4.0, 0.14, 0.2) == pytest.approx(4.0 - 0.14 - 0.2), "where passes come later than that"


def test_prompts_that_have_the_time_hold_nobody_up() -> None:
    assert longest_in_time(PACE, 0.04, 0.01, 0.1, left=1.0) == 0.04
    assert longest_in_time(PACE, 0.04, 0.01, 0.1, left=0.105) == 0.04, "nor do those that are late in any case"


@given(decode=st.floats(0.001, 0.03), prompts=st.floats(0.01, 1.0), left=st.floats(0.0, 2.0))
def test_prompts_that_would_be_late_are_cut_in_so_few_parts_that_they_are_not(
    decode: float, prompts: float, left: float
) -> None:
    usual = longest_batch(PACE, decode)
    longest = longest_in_time(PACE, usual, decode, prompts, left)
    assert longest >= usual
    if prompts + decode <= left:
        parts = math.ceil(prompts / (longest - decode) - 1e-9)
        assert prompts + parts * decode <= left + 1e-9
    if longest > usual:
        assert longest <= decode + prompts + 1e-9
