"""How a task would fare on a node: the seconds that it is given on every stage, and its path behind what is there."""

from __future__ import annotations

from typing import NamedTuple

from lemix_hpc.policy.forecast import ALL, expect
from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.policy.latency_tables import BACKWARD_PASS, FORWARD_PASS, SERVE_PASS, kind_seconds
from lemix_hpc.policy.request_places import place_of_request
from lemix_hpc.policy.rules import Rules
from lemix_hpc.policy.state import Floats, State


class Candidate(NamedTuple):
    """What a node has to offer a task: all that a score can go by, besides the state of the node.

    In seconds: `now`; `alone`, what the task would need on a node of its own; `response`, from release to the end of the last
    forward (R); `completion`, the time when it is through (of a request fe_{S-1}, of training be_0); `idleness`, stage time
    that it leaves idle in front of itself (II). `length`: tokens; `serves`: whether it is a request.
    """

    now: float
    alone: float
    length: int
    response: float
    completion: float
    idleness: float
    serves: bool


@compiled
def expected_output(state: State, rules: Rules, output: int) -> int:
    """The tokens that forecasts expect of a request that asks for so many."""
    return output if rules.oracle or output <= 1 else max(2, round(state.counters[0].expected_output))


@inlined
def batch_of(state: State, rules: Rules, node: int) -> int:
    """How many would be in a batch with one more request: those that generate are spread over as many batches as stages."""
    return min(rules.batch_requests, 1 + state.nodes[node].generating // state.forward.shape[1])


@inlined
def request_row(state: State, rules: Rules, node: int, prompt: int, output: int, row: Floats) -> float:
    """Fill in the seconds that a request is given on every stage, (stages,): its share of batches where it generates.

    Returns the seconds from its first begin to its end on a node that is its own but for those batches.
    """
    times, kind = state.times, state.times.kind_of[node]
    passes, batch = max(0, output - 1), batch_of(state, rules, node)
    alone = 0.0
    for stage in range(row.size):
        squares = float(prompt) * prompt
        seconds = kind_seconds(times, kind, SERVE_PASS, stage, prompt, squares, 0.0, 1 if prompt > 1 else 0)
        alone += seconds
        if passes > 0:
            cached = batch * (prompt + (passes - 1) / 2)
            decode = kind_seconds(times, kind, SERVE_PASS, stage, batch, float(batch), cached, 0)
            seconds += passes * decode / batch
            alone += passes * decode
        row[stage] = seconds
    return alone


@inlined
def training_rows(state: State, node: int, rows: int, length: int, forward: Floats, backward: Floats) -> None:
    """Fill in the seconds of a forward and backward on every stage, (stages,) each, of `rows` sequences of this length."""
    times, kind = state.times, state.times.kind_of[node]
    tokens, squares, prefills = rows * length, float(rows) * length * length, rows if length > 1 else 0
    for stage in range(forward.size):
        forward[stage] = kind_seconds(times, kind, FORWARD_PASS, stage, tokens, squares, 0.0, prefills)
        backward[stage] = kind_seconds(times, kind, BACKWARD_PASS, stage, tokens, squares, 0.0, prefills)


@inlined
def order_key(rules: Rules, release: float, work: float) -> float:
    """Requests of a node run by the smallest key [s]: arrival, plus what shorter ones may overtake it by."""
    return release + rules.patience * work


@inlined
def request_candidate(
    state: State, rules: Rules, node: int, now: float, alone: float, length: int, forward: Floats
) -> Candidate:
    """A request on a node, in its place among those that wait there. `forward`, (stages,), and `alone` [s]: as filled in
    and returned by `request_row`."""
    key = order_key(rules, now, forward.sum())
    behind = place_of_request(state, node, key, now, rules.serving_first)
    sequence = 0 if rules.serving_first else ALL
    begin, end, idleness = expect(state, node, behind, sequence, now, forward)
    end = max(end, begin + alone)
    return Candidate(now, alone, length, end - now, end, idleness, True)


@inlined
def training_candidate(
    state: State, node: int, now: float, length: int, forward: Floats, backward: Floats
) -> Candidate:
    """A micro-batch on a node, behind everything there. `forward`, `backward`: (stages,), as filled in by `training_rows`."""
    _, end, idleness = expect(state, node, state.nodes[node].tail, ALL, now, forward)
    return Candidate(now, forward.sum(), length, end - now, end + backward.sum(), idleness, False)
