"""Which node a task goes to: every node gets a score from the forecast of the task there, and the highest one wins.

Scores are negative costs; among equals the first node wins. What each placement weighs is in docs/policy.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from lemix_hpc.policy.forecast import ALL, expect, place_of_request
from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.policy.latency_tables import BACKWARD_PASS, FORWARD_PASS, SERVE_PASS, kind_seconds
from lemix_hpc.policy.rules import (
    LATE_ALLOWED,
    LATE_MEMORY,
    LEAST_UTILISED,
    LEMIX,
    LEMIX_PAPER,
    PACK,
    RANDOM,
    ROOM,
    ROUND_ROBIN,
    UTILISATION_MEMORY,
    Rules,
)
from lemix_hpc.policy.state import NONE, Floats, State


class Candidate(NamedTuple):
    """What a node has to offer a task, seconds: `response` from release to the end of the last forward, `completion` the
    time when it is through, `idleness` the paper's II, `score` the higher the better."""

    response: float
    completion: float
    idleness: float
    score: float


@compiled
def expected_output(state: State, rules: Rules, output: int) -> int:
    """The tokens that forecasts expect of a request that asks for so many."""
    return output if rules.oracle or output <= 1 else max(2, round(state.counters[0].expected_output))


@inlined
def request_row(state: State, rules: Rules, node: int, prompt: int, output: int, row: Floats) -> float:
    """Fill in the seconds that a request is given on every stage, its share of batches where it generates.

    Returns the seconds from its first begin to its end on a node that is its own but for those batches.
    """
    times, kind = state.times, state.times.kind_of[node]
    passes = max(0, output - 1)
    # Requests that generate are spread over as many batches as there are stages.
    batch = min(rules.batch_requests, 1 + state.nodes[node].generating // row.size)
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
    """Fill in the seconds of a micro-batch's forward and backward on every stage."""
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
    """A request on a node, in its place among those that wait there."""
    key = order_key(rules, now, forward.sum())
    behind = place_of_request(state, node, key, now, rules.serving_first)
    sequence = 0 if rules.serving_first else ALL
    begin, end, idleness = expect(state, node, behind, sequence, now, forward)
    end = max(end, begin + alone)
    return Candidate(end - now, end, idleness, score(state, rules, node, now, end - now, end, idleness, alone, length))


@inlined
def training_candidate(
    state: State, rules: Rules, node: int, now: float, length: int, forward: Floats, backward: Floats
) -> Candidate:
    """A micro-batch on a node, behind everything there."""
    _, end, idleness = expect(state, node, state.nodes[node].tail, ALL, now, forward)
    completion, work = end + backward.sum(), forward.sum()
    return Candidate(
        end - now,
        completion,
        idleness,
        score(state, rules, node, now, end - now, completion, idleness, work, length),
    )


@inlined
def score(
    state: State,
    rules: Rules,
    node: int,
    now: float,
    response: float,
    completion: float,
    idleness: float,
    alone: float,
    length: int,
) -> float:
    """How well a placement likes a node."""
    nodes = state.nodes
    if rules.placement == LEMIX:
        never = nodes[node].last_release == -math.inf
        idle = rules.keep if never else min(idleness / (state.free_at.shape[1] * rules.t0), rules.keep)
        late = max(0.0, (response - alone) / rules.t0 - rules.tau)
        return -idle - rules.lambda1 * late + rules.lambda2 * length_consistency(state, node, length, False)
    if rules.placement == LEMIX_PAPER:
        gap = 0.0 if nodes[node].last_release == -math.inf else now - nodes[node].last_release
        profit = -max(idleness / state.free_at.shape[1] - gap, rules.tau)
        consistency = length_consistency(state, node, length, True)
        return (profit + rules.lambda2 * consistency) / (rules.lambda1 * response)
    if rules.placement == LEAST_UTILISED:
        return -nodes[node].used * math.exp(-(now - nodes[node].used_at) / (UTILISATION_MEMORY * rules.t0))
    return -completion


@compiled
def length_consistency(state: State, node: int, length: int, density: bool) -> float:
    """exp(-z^2 / 2), z = (length - mean) / std of the lengths on the node; 0 while std is 0. The paper's code has the
    normal `density` per token instead."""
    here = state.nodes[node]
    if here.squared_lengths <= 0.0:
        return 0.0
    std = math.sqrt(here.squared_lengths / here.lengths)
    unit = math.exp(-(((length - here.mean_length) / std) ** 2) / 2.0)
    return unit / (std * math.sqrt(2.0 * math.pi)) if density else unit


@compiled
def choose_for_request(state: State, rules: Rules, now: float, prompt: int, output: int) -> int:
    """The node that a request goes to."""
    turn = _turn_of_request(state, rules)
    if turn != NONE:
        return turn
    row, kind = state.scratch[0], NONE
    best, best_score, best_response, alone = 0, -math.inf, math.inf, 0.0
    for node in range(rules.servers):
        # Without generation a row depends on the kind of the node alone.
        if output > 1 or state.times.kind_of[node] != kind:
            kind = state.times.kind_of[node]
            alone = request_row(state, rules, node, prompt, output, row)
        candidate = request_candidate(state, rules, node, now, alone, prompt, row)
        if candidate.score > best_score:
            best, best_score, best_response = node, candidate.score, candidate.response
        if rules.placement == PACK and _is_enough(state, rules, node, candidate.response, best_response, alone):
            return node if candidate.response <= ROOM * rules.limit else best
    return best


@compiled
def _is_enough(state: State, rules: Rules, node: int, response: float, best_response: float, alone: float) -> bool:
    """`pack`: whether the nodes up to this one are enough for a request, so that later ones stay unused.

    They are when this one is expected to meet the limit with some room. A node that was never used is opened only for
    requests that would else be late, and only when more than a few were lately; the best of the used ones takes the others.
    """
    counters = state.counters
    if response <= ROOM * rules.limit:
        counters[0].missed -= counters[0].missed / LATE_MEMORY
        return True
    if node < rules.servers - 1 and state.nodes[node + 1].last_release > -math.inf:
        return False
    late = alone <= rules.limit < best_response
    counters[0].missed += ((1.0 if late else 0.0) - counters[0].missed) / LATE_MEMORY
    return not late or counters[0].missed < LATE_ALLOWED


@compiled
def choose_for_training(state: State, rules: Rules, now: float, rows: int, length: int) -> int:
    """The node that a group of micro-batches goes to: one that is not being fed another."""
    nodes = state.nodes
    turn = _turn_of_training(state, rules)
    if turn != NONE:
        return turn
    forward, backward, kind = state.scratch[0], state.scratch[1], NONE
    best, best_score = NONE, -math.inf
    for node in range(rules.trainers, nodes.size):
        if nodes[node].open_first != NONE:
            continue
        if state.times.kind_of[node] != kind:
            kind = state.times.kind_of[node]
            training_rows(state, node, rows, length, forward, backward)
        candidate = training_candidate(state, rules, node, now, rows * length, forward, backward)
        if rules.placement == PACK and (node == 0 or nodes[node].requests > 0):
            return node
        if rules.placement != PACK and (best == NONE or candidate.score > best_score):
            best, best_score = node, candidate.score
    return best


@compiled
def _turn_of_request(state: State, rules: Rules) -> int:
    """The node whose turn it is, for placements that look at nothing else; NONE for others."""
    counters = state.counters
    if rules.placement == RANDOM:
        return _random_below(state, rules.servers)
    if rules.placement != ROUND_ROBIN:
        return NONE
    turn = counters[0].request_turn
    counters[0].request_turn = (turn + 1) % rules.servers
    return turn


@compiled
def _turn_of_training(state: State, rules: Rules) -> int:
    """The same for training, counted apart; it skips nodes that are being fed."""
    nodes, counters = state.nodes, state.counters
    if rules.placement not in (ROUND_ROBIN, RANDOM):
        return NONE
    turn = _random_below(state, nodes.size) if rules.placement == RANDOM else counters[0].training_turn
    while nodes[turn].open_first != NONE:
        turn = (turn + 1) % nodes.size
    counters[0].training_turn = (turn + 1) % nodes.size
    return turn


@compiled
def _random_below(state: State, count: int) -> int:
    """A whole number from 0 to count - 1 (splitmix64; Steele et al., OOPSLA 2014)."""
    counters = state.counters
    counters[0].random += np.uint64(0x9E3779B97F4A7C15)
    mixed = counters[0].random
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return int(np.float64(mixed >> np.uint64(11)) * (1.0 / (1 << 53)) * count)
