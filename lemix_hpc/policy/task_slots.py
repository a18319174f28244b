"""Rows for unfinished tasks: taken, found by the numbers of the tasks, and given back.

Numbers are never used again, slots are: a run of months keeps no more than what is unfinished.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.policy.state import NONE, Ints, State


def full(state: State, more: int) -> bool:
    """Whether there is no room for `more` unfinished tasks. Not compiled, as `next_tick`."""
    return bool(state.counters[0]["free"] < more)


def grown(state: State) -> State:
    """The same state with twice the slots."""
    old, counters = state.slots.size, state.counters[0]
    size = 2 * old
    # The ring of offered groups is written anew from its start.
    first, end = int(counters["offered_first"]), int(counters["offered_end"])
    offered = np.zeros(size, dtype=np.int64)
    offered[: end - first] = state.offered[np.arange(first, end) % old]
    counters["offered_first"], counters["offered_end"] = 0, end - first
    free = int(counters["free"])
    free_slots = np.zeros(size, dtype=np.int64)
    free_slots[:old] = np.arange(old, size)[::-1]
    free_slots[old : old + free] = state.free_slots[:free]
    counters["free"] = old + free
    return state._replace(
        slots=_longer(state.slots, size),
        paths=_longer(state.paths, size),
        forward=_longer(state.forward, size),
        backward=_longer(state.backward, size),
        table=_with_room(state, 2 * size),
        free_slots=free_slots,
        offered=offered,
        decided=_longer(state.decided, size),
    )


@compiled
def take_slot(state: State, task: int) -> int:
    """A row for a task; there must be one free."""
    counters = state.counters
    counters[0].free -= 1
    slot = state.free_slots[counters[0].free]
    state.table[_place(state, task)] = slot
    state.slots[slot].task = task
    state.slots[slot].patient = False
    state.slots[slot].node = NONE
    state.slots[slot].first = state.slots[slot].each = state.slots[slot].plain = 0.0
    return slot


@compiled
def return_slot(state: State, slot: int) -> None:
    """The task has its outcome."""
    counters = state.counters
    counters[0].training -= state.slots[slot].training
    _leave_table(state, state.slots[slot].task)
    state.free_slots[counters[0].free] = slot
    counters[0].free += 1


@inlined
def slot_of(state: State, task: int) -> int:
    """The slot of an unfinished task; NONE if it is not, or not known."""
    return int(state.table[_place(state, task)])


@compiled
def _place(state: State, task: int) -> int:
    """Where in the table a task's slot is, or would be: at the task's number, or behind what is there already.

    Half of the table stays empty, and tasks are numbered one after the other, so that places are close to their numbers.
    """
    table, slots = state.table, state.slots
    place = task % table.size
    while table[place] != NONE and slots[table[place]].task != task:
        place = (place + 1) % table.size
    return place


@compiled
def _leave_table(state: State, task: int) -> None:
    """What lies behind a task moves up into the gap, as far as it would be looked for there."""
    table, slots = state.table, state.slots
    gap = place = _place(state, task)
    while True:
        place = (place + 1) % table.size
        if table[place] == NONE:
            break
        number = slots[table[place]].task % table.size
        if (place - number) % table.size >= (place - gap) % table.size:
            table[gap] = table[place]
            gap = place
    table[gap] = NONE


def _with_room(state: State, size: int) -> Ints:
    """The table of this size."""
    table = np.full(size, NONE)
    for slot in state.table[state.table != NONE]:
        place = state.slots[slot]["task"] % size
        while table[place] != NONE:
            place = (place + 1) % size
        table[place] = slot
    return table


def _longer(array: NDArray[Any], size: int) -> NDArray[Any]:
    longer = np.zeros((size, *array.shape[1:]), dtype=array.dtype)
    longer[: array.shape[0]] = array
    return longer
