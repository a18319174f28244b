"""When a request that generates is expected to have its first token, and how long each further one takes, on its node.

Both follow from what is there: how many requests share the passes of the node, the tokens in their caches, prompts that
are not through, and the pace. How far the time between tokens is from the plain one is learned from requests that end.
"""

from __future__ import annotations

import math

from lemix_hpc.policy import pacing
from lemix_hpc.policy.candidates import batch_of
from lemix_hpc.policy.decode_load import batch_seconds, own_load, prompt_seconds
from lemix_hpc.policy.jit import compiled
from lemix_hpc.policy.pacing import FIRST_MARGIN, Pace
from lemix_hpc.policy.rules import Rules
from lemix_hpc.policy.state import NONE, State

longest_batch = compiled(pacing.longest_batch)

LEAST_LEFT = 0.1
"""Prompts are taken to have at least so much of the time of paced passes."""
TOKEN_MEMORY, LARGEST_STRETCH = 4096.0, 8.0
"""The time between tokens of a node is learned over so many of them; it is at most so many times the plain one."""


@compiled
def forecast_tokens(state: State, rules: Rules, node: int, slot: int, now: float, prompt: int) -> None:
    """Note what is expected of a request that comes to a node now and is not counted there yet: seconds to its `first` token,
    and for `each` further one. `plain`: the latter before what was learned of the node."""
    here, slots, stages = state.nodes[node], state.slots, state.forward.shape[1]
    work = prompt_seconds(state, node, prompt)
    if rules.tpot > 0.0:
        decode = here.pass_seconds
        slots[slot].plain = rules.tpot * max(1.0, own_load(state, rules, node, prompt) + decode / rules.tpot)
        whole, left = longest_batch(Pace(rules.ttft, rules.tpot), decode), max(LEAST_LEFT, 1.0 - decode / rules.tpot)
        wait = _wait_paced(state, rules, node, work, decode)
    else:
        decode = batch_seconds(state, node, batch_of(state, rules, node))
        slots[slot].plain, whole, left = decode, math.inf, 1.0
        # One batch runs on the first stage, and another one may wait there.
        wait = 1.5 * decode / stages if here.generating > 0 else 0.0
    # Prompts go one behind the other, in parts that passes have room for, in the time that decode leaves.
    begin = max(now + wait, here.prompts_until)
    here.prompts_until = begin + work / left
    first = begin - now + work + (math.floor(work / (whole - decode)) + 1.0) * decode
    if decode < rules.tpot:
        # As long as a node keeps its pace, prompts are due before they are late.
        first = min(first, max(rules.ttft, work + decode))
    slots[slot].first, slots[slot].each = first, here.stretch * slots[slot].plain


@compiled
def _wait_paced(state: State, rules: Rules, node: int, work: float, decode: float) -> float:
    """How long a prompt waits for the next pass of a node that keeps pace [s]: half the time between two of them, less what
    the prompt makes it longer. A node without others passes when the first token is due, or nothing trains."""
    here = state.nodes[node]
    if here.generating > 0:
        return max(0.0, here.stretch * rules.tpot / 2.0 - work)
    if here.first_training == NONE:
        return 0.0
    return max(0.0, rules.ttft - work - decode - FIRST_MARGIN * rules.tpot)


@compiled
def note_tokens(state: State, slot: int, now: float, output: int) -> None:
    """Learn from a request that has ended now with so many tokens: it counts as its tokens do."""
    slots, more = state.slots, output - 1
    if more < 1 or slots[slot].plain <= 0.0:
        return
    here = state.nodes[slots[slot].node]
    stretch = (now - slots[slot].release - slots[slot].first) / more / slots[slot].plain
    weight = min(0.5, more / TOKEN_MEMORY)
    here.stretch += weight * (min(max(stretch, 1.0 / LARGEST_STRETCH), LARGEST_STRETCH) - here.stretch)
