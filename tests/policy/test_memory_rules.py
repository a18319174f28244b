"""What is done about memory that is short."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.policy.memory_rules import (
    OFFLOAD,
    PREEMPT,
    RUN,
    WAIT,
    decide,
    micro_batches_needed,
    moves_for_training,
    patience_of_training,
    room,
    spare_time,
    waits_for_training,
    won_by_offloading,
    yields,
)

NOBODY = math.inf
"""Since when nobody waits."""


@pytest.mark.parametrize(
    ("need", "won", "to_be_won", "preemptible", "now", "expected"),
    [
        (10, 0, 5, 5, 9.0, RUN),
        (11, 0, 5, 5, 0.9, WAIT),
        (11, 0, 5, 5, 1.0, OFFLOAD),
        (11, 1, 5, 5, 1.0, WAIT),
        (16, 0, 5, 5, 2.9, WAIT),
        (16, 0, 5, 5, 3.0, PREEMPT),
        (16, 0, 5, 0, 3.0, WAIT),
    ],
)
def test_a_task_waits_then_training_makes_room_then_caches(
    need: int, won: int, to_be_won: int, preemptible: int, now: float, expected: int
) -> None:
    assert decide(10, need, 5, won, to_be_won, preemptible, now, 1.0, 3.0) == expected


@pytest.mark.parametrize(
    ("training", "serving", "in_flight", "gpipe", "expected"),
    [
        (NOBODY, NOBODY, 2, False, False),
        (NOBODY, 1.0, 2, False, True),
        (2.0, 1.0, 0, False, True),
        (1.0, 2.0, 2, False, False),
        (2.0, 1.0, 0, True, True),
        (2.0, 1.0, 1, True, False),
    ],
)
def test_no_micro_batch_goes_before_a_request_that_waited_first_unless_a_group_needs_it_to_end(
    training: float, serving: float, in_flight: int, gpipe: bool, expected: bool
) -> None:
    assert yields(training, serving, in_flight, gpipe) == expected


@given(st.floats(0, 9), st.floats(0, 9), st.integers(0, 3), st.booleans(), st.floats(0, 9), st.floats(0, 99))
def test_requests_and_training_never_wait_for_each_other(
    training: float, serving: float, in_flight: int, gpipe: bool, patience: float, now: float
) -> None:
    assert not (yields(training, serving, in_flight, gpipe) and waits_for_training(training, serving, patience, now))


def test_requests_wait_for_training_that_has_stood_still_for_long() -> None:
    assert patience_of_training(1.0, 10.0, 0, False) == patience_of_training(1.0, 10.0, 0, True) == 10.0
    assert patience_of_training(1.0, 0.0, 0, False) == 1.0
    assert patience_of_training(1.0, 10.0, 2, False) == math.inf, "what is in flight ends and gives its memory back"
    assert patience_of_training(1.0, 10.0, 2, True) == 1.0, "nothing in flight ends without it"
    assert not waits_for_training(0.0, NOBODY, 10.0, 9.9)
    assert waits_for_training(0.0, NOBODY, 10.0, 10.0)
    assert not waits_for_training(NOBODY, NOBODY, 10.0, 99.0)


def test_activations_move_for_as_many_as_keep_stages_busy() -> None:
    assert moves_for_training(1, 2, False) and not moves_for_training(2, 2, False)
    assert moves_for_training(2, 2, True)


def test_what_nobody_could_make_room_for_runs_all_the_same() -> None:
    assert decide(10, 11, 0, 0, 0, 0, 0.0, 1.0, 1.0) == RUN


def test_room_is_what_is_left_of_the_part_of_the_capacity_that_may_be_filled() -> None:
    assert room(100, 0.9, 40) == 50
    assert room(100, 0.5, 60) == -10


@given(st.lists(st.integers(0, 50)), st.lists(st.integers(0, 50), min_size=1))
def test_what_is_won_is_what_leaves_beyond_the_room_for_the_largest_that_is_away(
    away: list[int], all_: list[int]
) -> None:
    kept, won, held = max(away, default=0), 0, sum(all_)
    taken = held + kept
    for number in range(1, len(all_) + 1):
        before, won = won, won_by_offloading(sum(all_[:number]), max(all_[:number]), kept)
        assert won >= before, "moving one more never takes room"
        assert taken - won == sum(all_[number:]) + max([*away, *all_[:number]])
    assert won_by_offloading(0, 0, kept) == 0
    if not away:
        assert won_by_offloading(all_[0], all_[0], kept) == 0, "the first one wins nothing"


@pytest.mark.parametrize(
    ("in_group", "gpipe", "offloads", "expected"),
    [(8, False, False, 1), (8, False, True, 1), (8, True, False, 8), (8, True, True, 2), (1, True, True, 1)],
)
def test_under_gpipe_alone_micro_batches_have_to_be_there_together(
    in_group: int, gpipe: bool, offloads: bool, expected: int
) -> None:
    assert micro_batches_needed(in_group, gpipe, offloads) == expected


def test_who_is_expected_soon_after_its_arrival_has_time_to_spare() -> None:
    assert spare_time(1.0, 2.0) > spare_time(1.0, 3.0)
    assert spare_time(2.0, 3.0) > spare_time(1.0, 3.0)
