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

TOKEN_MEMORY, LARGEST_STRETCH = 4096.0, 8.0
"""The time between tokens of a node is learned over so many of them; it is at most so many times the plain one."""


@compiled
def forecast_tokens(state: State, rules: Rules, node: int, slot: int, now: float, prompt: int) -> None:
    """Note what is expected of a request that comes to a node now and is not counted there yet: seconds to its `first` token,
    and for `each` further one. `plain`: the latter before what was learned of the node."""
    here, slots = state.nodes[node], state.slots
    work = prompt_seconds(state, node, prompt)
    if rules.tpot > 0.0:
        slots[slot].plain = rules.tpot * max(1.0, own_load(state, rules, node, prompt) + here.pass_seconds / rules.tpot)
        first, here.prompts_until = first_paced(state, rules, node, now, work)
        # As long as a node keeps its pace, prompts are due before they are late.
        most = max(rules.ttft, work + here.pass_seconds) if here.pass_seconds < rules.tpot else math.inf
        slots[slot].first = min(first, most)
    else:
        slots[slot].plain = batch_seconds(state, node, batch_of(state, rules, node))
        slots[slot].first = _first_at_once(state, node, now, work, slots[slot].plain)
    slots[slot].each = here.stretch * slots[slot].plain


@compiled
def first_paced(state: State, rules: Rules, node: int, now: float, work: float) -> tuple[float, float]:
    """Seconds to the first token of a prompt that takes `work` seconds and does not hurry, on a node that keeps pace; and when
    the prompts there would be through with it [s].

    Prompts go one behind the other, in the room that passes have beside decode. As long as any wait, passes follow one another
    at their full length.
    """
    here = state.nodes[node]
    # More than a batch takes wait for their turn.
    most = rules.batch_requests
    decode = here.pass_seconds if here.generating < most else batch_seconds(state, node, most)
    whole = longest_batch(Pace(rules.ttft, rules.tpot), decode)
    room = whole - decode
    queued = max(0.0, here.prompts_until - now) * room / whole + work
    full = math.floor(queued / room)
    first = _wait_paced(state, rules, node, work, decode) + full * whole + decode + queued - full * room
    return first, now + queued * whole / room


@compiled
def late_first(state: State, rules: Rules, node: int, prompt: int) -> bool:
    """Whether a prompt takes longer than the limit on first tokens even if it is computed at once, where there is one."""
    return rules.tpot > 0.0 and prompt_seconds(state, node, prompt) + state.nodes[node].pass_seconds > rules.ttft


@compiled
def _wait_paced(state: State, rules: Rules, node: int, work: float, decode: float) -> float:
    """How long it is to the next pass of a node that keeps pace [s]: half the time between two of them. A node without others
    passes when the first token is due, or nothing trains."""
    here = state.nodes[node]
    if here.generating > 0:
        return here.stretch * rules.tpot / 2.0
    if here.first_training == NONE:
        return 0.0
    return max(0.0, rules.ttft - work - decode - FIRST_MARGIN * rules.tpot)


@compiled
def _first_at_once(state: State, node: int, now: float, work: float, decode: float) -> float:
    """The same on a node that passes as soon as it can, `decode` seconds without prompts."""
    here = state.nodes[node]
    # One batch runs on the first stage, and another one may wait there.
    wait = 1.5 * decode / state.forward.shape[1] if here.generating > 0 else 0.0
    begin = max(now + wait, here.prompts_until)
    here.prompts_until = begin + work
    return begin - now + work + decode


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
