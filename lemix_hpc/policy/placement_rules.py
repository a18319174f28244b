"""What each placement does, one small function each, and the dispatch by its number (`placements.code`).

Most score: every node gets a score from the forecast of the task there, and the highest one wins, the first of equals.
Scores are negative costs; their formulas are those of `placements` and docs/policy.md. Some take turns instead, and look at
no forecast. `pack` takes the first node that is good enough.
"""

from __future__ import annotations

import math

import numpy as np

from lemix_hpc.policy.candidates import Candidate
from lemix_hpc.policy.decode_load import load, most_load, own_load, prompt_seconds
from lemix_hpc.policy.estimates import UTILISATION_MEMORY
from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.policy.placements import code
from lemix_hpc.policy.rules import Rules
from lemix_hpc.policy.state import NONE, State
from lemix_hpc.policy.token_forecast import first_paced

LEMIX, LEMIX_PAPER, LEAST_UTILISED = code("lemix"), code("lemix-paper"), code("least-utilised")
ROUND_ROBIN, RANDOM = code("round-robin"), code("random")
PACK, FILL = code("pack"), code("fill")

LATE_MEMORY, LATE_ALLOWED = 1000.0, 0.01
"""`pack` opens another node when more than this share of about so many requests was expected to be late."""
ROOM = 0.8
"""`pack` goes on to the next node when a request is expected to need more than this share of its limit."""
FIRST_SHARE = 0.9
"""`fill` goes on to another node when a first token is expected to need more than this share of its limit."""


# Scores


@inlined
def score(state: State, rules: Rules, node: int, candidate: Candidate) -> float:
    """How well the placement likes a node for a task: the higher, the better."""
    if rules.placement == LEMIX:
        return lemix(state, rules, node, candidate)
    if rules.placement == LEMIX_PAPER:
        return lemix_paper(state, rules, node, candidate)
    if rules.placement == LEAST_UTILISED:
        return least_utilised(state, rules, node, candidate)
    if candidate.serves and fills(state, rules):
        return fill(state, rules, node, candidate)
    return least_completion(candidate)


@inlined
def least_completion(candidate: Candidate) -> float:
    """Where the task is through first. `separate` goes by it too, within its split, and `pack` where no node is enough."""
    return -candidate.completion


@inlined
def lemix(state: State, rules: Rules, node: int, candidate: Candidate) -> float:
    """The trade-offs that the LeMix paper states (Li et al., arXiv 2507.21276), in units of T0."""
    knobs, never = rules.knobs, state.nodes[node].last_release == -math.inf
    idle = knobs.keep if never else min(candidate.idleness / (state.free_at.shape[1] * rules.t0), knobs.keep)
    late = max(0.0, (candidate.response - candidate.alone) / rules.t0 - knobs.tau)
    return -idle - knobs.lambda1 * late + knobs.lambda2 * length_consistency(state, node, candidate.length)


@inlined
def lemix_paper(state: State, rules: Rules, node: int, candidate: Candidate) -> float:
    """The score of that paper as its authors' code has it."""
    knobs, last = rules.knobs, state.nodes[node].last_release
    gap = 0.0 if last == -math.inf else candidate.now - last
    profit = -max(candidate.idleness / state.free_at.shape[1] - gap, knobs.tau)
    consistency = length_density(state, node, candidate.length)
    return (profit + knobs.lambda2 * consistency) / (knobs.lambda1 * candidate.response)


@inlined
def least_utilised(state: State, rules: Rules, node: int, candidate: Candidate) -> float:
    """Where least stage time was given lately."""
    here = state.nodes[node]
    return -here.used * math.exp(-(candidate.now - here.used_at) / (UTILISATION_MEMORY * rules.t0))


@inlined
def fill(state: State, rules: Rules, node: int, candidate: Candidate) -> float:
    """Where most is served, while there is room. A request costs least stage time where others are: it joins their passes."""
    part = load(state, rules, node, candidate.now) + own_load(state, rules, node, candidate.length)
    return _with_room(state, rules, node, candidate.now, prompt_seconds(state, node, candidate.length), part)


@inlined
def _with_room(state: State, rules: Rules, node: int, now: float, work: float, part: float) -> float:
    """The `part` of the node's time between tokens that passes would take, negative if that leaves no room for them, or for a
    prompt that takes `work` seconds to be through in time."""
    if part > rules.knobs.fill or first_paced(state, rules, node, now, work)[0] > FIRST_SHARE * rules.ttft:
        return -part
    return part


@compiled
def length_consistency(state: State, node: int, length: int) -> float:
    """exp(-z^2 / 2), z = (length - mean) / std of the lengths [tokens] on the node; 0 while std is 0 (LeMix, LC)."""
    here = state.nodes[node]
    if here.squared_lengths <= 0.0:
        return 0.0
    std = math.sqrt(here.squared_lengths / here.lengths)
    return math.exp(-(((length - here.mean_length) / std) ** 2) / 2.0)


@compiled
def length_density(state: State, node: int, length: int) -> float:
    """The normal density of the length [1/token], which the paper's code has instead of the length consistency."""
    here = state.nodes[node]
    if here.squared_lengths <= 0.0:
        return 0.0
    std = math.sqrt(here.squared_lengths / here.lengths)
    return length_consistency(state, node, length) / (std * math.sqrt(2.0 * math.pi))


# Turns


@inlined
def turn(state: State, rules: Rules, training: bool) -> int:
    """The node whose turn it is, for placements that look at no forecast; NONE for others. For `training` one that is not
    being fed a group; there must be one."""
    if rules.placement == ROUND_ROBIN:
        return round_robin(state, rules, training)
    if rules.placement == RANDOM:
        return random(state, rules, training)
    return NONE


@compiled
def round_robin(state: State, rules: Rules, training: bool) -> int:
    """One after the other, requests and training counted apart."""
    counters = state.counters
    if training:
        node = _not_fed_from(state, counters[0].training_turn)
        counters[0].training_turn = (node + 1) % state.nodes.size
    else:
        node = counters[0].request_turn
        counters[0].request_turn = (node + 1) % rules.servers
    return node


@compiled
def random(state: State, rules: Rules, training: bool) -> int:
    """Any node, drawn from the seed."""
    if training:
        return _not_fed_from(state, _random_below(state, state.nodes.size))
    return _random_below(state, rules.servers)


@compiled
def _not_fed_from(state: State, node: int) -> int:
    """The first node from this one on that is not being fed a group."""
    while state.nodes[node].open_first != NONE:
        node = (node + 1) % state.nodes.size
    return node


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


# The first node that is good enough


@inlined
def has_room(rules: Rules, candidate: Candidate) -> bool:
    """`pack`: whether a request is expected to keep its limit on a node with some room."""
    return candidate.response <= ROOM * rules.limit


@compiled
def packed(state: State, rules: Rules, node: int, candidate: Candidate, best_response: float) -> bool:
    """`pack`: whether the nodes up to this one are enough for a request, so that later ones stay unused.

    They are when this one has room. A node that was never used is opened only for requests that would else be late, and only
    when more than a few were lately; the best of the used ones takes the others. `best_response` [s]: that on the node with
    the highest score up to here.
    """
    counters = state.counters
    if has_room(rules, candidate):
        counters[0].missed -= counters[0].missed / LATE_MEMORY
        return True
    if node < rules.servers - 1 and state.nodes[node + 1].last_release > -math.inf:
        return False
    late = candidate.alone <= rules.limit < best_response
    counters[0].missed += ((1.0 if late else 0.0) - counters[0].missed) / LATE_MEMORY
    return not late or counters[0].missed < LATE_ALLOWED


@inlined
def packs_training(state: State, node: int) -> bool:
    """`pack`: training goes to the first node, and to others while they serve."""
    return node == 0 or state.nodes[node].requests > 0


# The fullest node that has room


@inlined
def fills(state: State, rules: Rules) -> bool:
    """Whether requests go by `fill`, which needs no forecast of them: where there is no training, nothing is won by it."""
    return rules.placement == FILL and rules.tpot > 0.0 and state.counters[0].training > 0


@compiled
def filled(state: State, rules: Rules, now: float, prompt: int) -> int:
    """The node with the highest score of `fill`, of equals the first."""
    best, best_score, kind, own, work = 0, -math.inf, NONE, 0.0, 0.0
    for node in range(rules.servers):
        if state.times.kind_of[node] != kind:
            kind = state.times.kind_of[node]
            own, work = own_load(state, rules, node, prompt), prompt_seconds(state, node, prompt)
        # Nothing that is full scores above one with room, and prompts only fade: most nodes need no look at the clock, and
        # fewer one at first tokens.
        if most_load(state, rules, node) + own <= best_score:
            continue
        part = load(state, rules, node, now) + own
        if part <= best_score:
            continue
        liking = _with_room(state, rules, node, now, work, part)
        if liking > best_score:
            best, best_score = node, liking
    return best
