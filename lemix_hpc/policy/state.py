"""What the scheduler knows, as arrays: tasks that are not finished, nodes, training on offer, and decisions.

The Python `Scheduler` and the compiled loop of the simulator work on the same state through the same compiled functions.
Few arrays, of records: each array that a compiled function takes costs at every call.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lemix_hpc.policy.by_reference import by_reference
from lemix_hpc.policy.jit import compiled
from lemix_hpc.policy.latency_tables import Times
from lemix_hpc.policy.rules import Rules

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Records = NDArray[Any]

NONE = -1
"""No slot, no task, no node."""
RAN_FORWARD, RAN_BACKWARD = 1, 2
"""Bits of `ran`."""
ROWS = 32
"""Sizes of batches of which rows are kept while a node is looked for."""
MOST_SEEN = 128
"""Of the last requests of a node, so many are known by their keys."""
WINDOW = 256
"""Output lengths that predictions of further ones go by."""

SLOT = np.dtype(
    [
        ("task", "i8"),
        ("node", "i8"),
        ("next", "i8"),  # in the order in which the node is expected to run its tasks
        ("previous", "i8"),
        ("next_training", "i8"),
        ("sequence", "i8"),  # far dependencies are on training of earlier sequences; 0: on none
        ("training", "?"),
        ("patient", "?"),  # of class batch: in no forecast
        ("prompt", "i8"),  # tokens; of training, tokens in each of the `rows`
        ("rows", "i8"),
        ("output", "i8"),  # tokens that were asked for
        ("group_size", "i8"),
        ("release", "f8"),
        ("eligible", "f8"),  # when training might have gone, but for being held
        ("key", "f8"),  # requests that wait on a node run by the smallest
        ("predicted", "f8"),  # response time, when the task was placed
        (
            "first",
            "f8",
        ),  # of a request that generates, when it was placed: seconds to its first token and for each further one,
        ("each", "f8"),  # 0 of others, and the latter before what was learned
        ("plain", "f8"),
        ("alone", "f8"),  # seconds of work of a request that came to a node without others, else 0
    ],
    align=True,
)
"""An unfinished task. Times are in seconds since the start of the run."""

PATH = np.dtype(
    [
        ("fb", "f8"),  # expected begins and ends of forward and backward, or real ones, where `ran` says so
        ("fe", "f8"),
        ("bb", "f8"),
        ("be", "f8"),
        ("after", "f8"),  # when the stage is through with this forward and all before it
        ("ran", "i8"),
    ],
    align=True,
)
"""A task on a stage."""

SEEN = np.dtype([("slot", "i8"), ("key", "f8"), ("begin", "f8")], align=True)
"""A request of a node, and the least key and expected begin of it and all later ones; NONE, or one that has begun: -inf."""

NODE = np.dtype(
    [
        ("head", "i8"),  # first and last slot in running order
        ("tail", "i8"),
        ("last_request", "i8"),  # the last slot that serves, where serving goes first, and its key
        ("last_key", "f8"),
        ("seen", "i8"),  # how many requests are in `State.seen`
        ("first_training", "i8"),
        ("last_training", "i8"),
        ("requests", "i8"),  # unfinished ones, and those of them that generate
        ("generating", "i8"),
        ("prompt_tokens", "i8"),  # of those that generate, and seconds of all stages given to prompts lately, as of
        ("prompt_seconds", "f8"),  # `prompted_at`
        ("prompted_at", "f8"),
        ("pass_seconds", "f8"),  # of a decode pass on all stages with one more request, where decode is paced
        ("prompts_until", "f8"),  # when the prompts that came are expected to be through
        ("stretch", "f8"),  # the time between tokens / what it is taken to be by the requests there
        ("batch_work", "i8"),  # of unfinished batch requests on all stages, ns: whole, so that no rounding is left
        ("used", "f8"),  # stage seconds given lately, as of `used_at`
        ("used_at", "f8"),
        ("last_release", "f8"),  # of the last task, -inf before the first
        ("lengths", "f8"),  # how many tasks, their mean length and the sum of squared deviations
        ("mean_length", "f8"),
        ("squared_lengths", "f8"),
        ("open_first", "i8"),  # the group that the node is fed: its first task, how many, and how many were let go
        ("open_size", "i8"),
        ("open_gone", "i8"),
        ("held", "i8"),  # how many of those, the last ones, wait for admission
    ],
    align=True,
)

COUNTER = np.dtype(
    [
        ("sequence", "i8"),
        ("free", "i8"),  # slots
        ("lanes", "i8"),  # free ones
        ("offered_first", "i8"),  # the ring of offered groups
        ("offered_end", "i8"),
        ("request_turn", "i8"),
        ("training_turn", "i8"),
        ("random", "u8"),
        ("missed", "f8"),  # share of the last requests that were expected to miss their limit for having waited
        ("tick_at", "f8"),  # when the scheduler wants to be asked again
        ("training", "i8"),  # unfinished micro-batches, those on offer included
        ("holding", "i8"),  # nodes that hold training
        ("outputs", "i8"),  # lengths seen
        ("expected_output", "f8"),
        ("overhead", "f8"),  # seconds of a response, for each token, that no stage works on it
        ("decided", "i8"),
    ],
    align=True,
)


by_reference(Rules)  # here: ranks of stages read them, too, and compile nothing


@by_reference
class State(NamedTuple):
    """Everything. Slots are rows of `slots` and `paths`, and of `forward` and `backward`, predicted seconds of work.

    `slots`: (slots,); `paths`, `forward`, `backward`: (slots, stages); `nodes`: (nodes,); `free_at`: (nodes, stages), latest
    real end on a stage, -inf before the first; `request_end`: (nodes, stages), when a stage is through with the last request,
    where serving goes first; `seen`: (nodes, MOST_SEEN), requests from the last one on, see
    `lemix_hpc.policy.request_places`; `counters`: (1,). `table`: (2 slots,), the slots of unfinished tasks, see
    `lemix_hpc.policy.task_slots`. `free_slots` is a stack, `offered` a ring of the first tasks of groups, `window`:
    (2, WINDOW), output lengths seen last, by age in a ring and by length.
    `decided`: (slots, 2), the first `counters[0].decided` tasks are to be sent to the nodes of their slots, or, with NONE as
    their slot, refused.
    `scratch`: (2, stages), for a task that is on no node yet. `rows`: (ROWS, stages), what a request would be given on nodes
    with batches of the sizes `row_sizes`, and alone there, `row_alone` [s]: of one decision.
    """

    times: Times
    slots: Records
    paths: Records
    forward: Floats
    backward: Floats
    nodes: Records
    free_at: Floats
    request_end: Floats
    seen: Records
    counters: Records
    table: Ints
    free_slots: Ints
    offered: Ints
    window: Ints
    decided: Ints
    scratch: Floats
    rows: Floats
    row_sizes: Ints
    row_alone: Floats


def make_state(times: Times, *, lanes: int, seed: int, expected_output: float, slots: int = 1024) -> State:
    """An empty cluster with room for so many unfinished tasks."""
    stages, nodes = times.linear.shape[2], times.kind_of.size
    return State(
        times=times,
        slots=np.zeros(slots, SLOT),
        paths=np.zeros((slots, stages), PATH),
        forward=np.zeros((slots, stages)),
        backward=np.zeros((slots, stages)),
        nodes=_make_nodes(nodes),
        free_at=np.full((nodes, stages), -np.inf),
        request_end=np.full((nodes, stages), -np.inf),
        seen=np.zeros((nodes, MOST_SEEN), SEEN),
        counters=_make_counters(slots, lanes, seed, expected_output),
        table=np.full(2 * slots, NONE),
        free_slots=np.arange(slots)[::-1].copy(),
        offered=np.zeros(slots, dtype=np.int64),
        window=np.zeros((2, WINDOW), dtype=np.int64),
        decided=np.zeros((slots, 2), dtype=np.int64),
        scratch=np.zeros((2, stages)),
        rows=np.zeros((ROWS, stages)),
        row_sizes=np.zeros(ROWS, dtype=np.int64),
        row_alone=np.zeros(ROWS),
    )


@compiled
def decide(state: State, task: int, slot: int) -> None:
    """Tell the caller to send a task to the node of its slot, or, if that is NONE, to refuse it."""
    counters = state.counters
    state.decided[counters[0].decided, 0], state.decided[counters[0].decided, 1] = task, slot
    counters[0].decided += 1


def _make_nodes(count: int) -> Records:
    nodes = np.zeros(count, NODE)
    for link in ("head", "tail", "last_request", "first_training", "last_training", "open_first"):
        nodes[link] = NONE
    nodes["last_release"] = nodes["last_key"] = nodes["prompts_until"] = -np.inf
    nodes["stretch"] = 1.0
    return nodes


def _make_counters(slots: int, lanes: int, seed: int, expected_output: float) -> Records:
    counters = np.zeros(1, COUNTER)
    counters["free"], counters["lanes"], counters["random"] = slots, lanes, seed
    counters["tick_at"], counters["expected_output"] = np.inf, expected_output
    return counters
