"""Slots of unfinished tasks are found by the numbers of the tasks."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.policy.latency_tables import make_times
from lemix_hpc.policy.state import NONE, State, make_state
from lemix_hpc.policy.task_slots import full, grown, return_slot, slot_of, take_slot
from tests.policy.toy import constant


def empty(slots: int) -> State:
    times = make_times([constant(forward=1, backward=2)], np.zeros(1, dtype=np.int64))
    return make_state(times, lanes=1, seed=0, expected_output=1.0, slots=slots)


@given(
    st.integers(1, 9),
    st.lists(st.tuples(st.booleans(), st.integers(0, 10**6)), max_size=60),
)
def test_each_unfinished_task_is_found_and_no_other(slots: int, turns: list[tuple[bool, int]]) -> None:
    """Whatever comes and goes in whatever order: also numbers that want the same place, and tables that grow on the way."""
    state, there = empty(slots), dict[int, int]()
    for comes, number in turns:
        # Few remainders and several sizes: places collide, also at the end of the table.
        task = number % 7 * 2 * slots + number % 3
        if task in there:
            return_slot(state, there.pop(task))
        elif comes:
            if full(state, 1):
                state = grown(state)
            there[task] = take_slot(state, task)
        elif there:
            gone = sorted(there)[number % len(there)]
            return_slot(state, there.pop(gone))
        assert {each: slot_of(state, each) for each in there} == there
        assert len(set(there.values())) == len(there)
        assert slot_of(state, task) == there.get(task, NONE)
        other = task + 2 * slots * 7
        assert slot_of(state, other) == there.get(other, NONE)


def test_tasks_that_are_numbered_one_after_another_lie_at_their_numbers() -> None:
    state = empty(64)
    slots = [take_slot(state, task) for task in range(1000, 1064)]
    assert [state.table[task % 128] for task in range(1000, 1064)] == slots
