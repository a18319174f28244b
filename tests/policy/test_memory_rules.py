"""What is done about memory that is short."""

from __future__ import annotations

import pytest

from lemix_hpc.policy.memory_rules import OFFLOAD, PREEMPT, RUN, WAIT, decide, room, spare_time


@pytest.mark.parametrize(
    ("need", "leaving", "offloadable", "preemptible", "now", "expected"),
    [
        (10, 0, 5, 5, 9.0, RUN),
        (11, 0, 5, 5, 0.9, WAIT),
        (11, 0, 5, 5, 1.0, OFFLOAD),
        (11, 1, 5, 5, 1.0, WAIT),
        (11, 0, 0, 5, 1.0, PREEMPT),
        (11, 0, 0, 0, 1.0, WAIT),
    ],
)
def test_a_task_waits_until_its_deadline_then_training_makes_room_then_caches(
    need: int, leaving: int, offloadable: int, preemptible: int, now: float, expected: int
) -> None:
    assert decide(10, need, 5, leaving, offloadable, preemptible, now, 1.0) == expected


def test_what_nobody_could_make_room_for_runs_all_the_same() -> None:
    assert decide(10, 11, 0, 0, 0, 0, 0.0, 1.0) == RUN


def test_room_is_what_is_left_of_the_part_of_the_capacity_that_may_be_filled() -> None:
    assert room(100, 0.9, 40, 5) == 45
    assert room(100, 0.5, 60, 0) == -10


def test_who_is_expected_soon_after_its_arrival_has_time_to_spare() -> None:
    assert spare_time(1.0, 2.0) > spare_time(1.0, 3.0)
    assert spare_time(2.0, 3.0) > spare_time(1.0, 3.0)
