"""What decode that is paced takes of a node: the seconds of its passes, kept for every node as requests come and go.

A pass costs nearly the same for few requests as for many, and each request one place in the passes of its node. So what a
node would spend with one more request is known before one comes; only the prompt of that one is its own.
"""

from __future__ import annotations

import math

from lemix_hpc.policy.jit import compiled, inlined
from lemix_hpc.policy.latency_tables import SERVE_PASS, kind_seconds
from lemix_hpc.policy.rules import Rules
from lemix_hpc.policy.state import State

PROMPT_MEMORY = 60.0
"""Prompts that came so many TPOT limits ago count 1/e of those that come now."""


@inlined
def load(state: State, rules: Rules, node: int, now: float) -> float:
    """The part of the time between tokens that passes of a node take on all its stages, with one more request (L): one with
    everybody, and the prompts that come meanwhile. The prompt of the one more is left out, see `own_load`."""
    here = state.nodes[node]
    lately = here.prompt_seconds * math.exp((here.prompted_at - now) / (PROMPT_MEMORY * rules.tpot))
    return (here.pass_seconds + lately / PROMPT_MEMORY) / rules.tpot


@inlined
def most_load(state: State, rules: Rules, node: int) -> float:
    """No less than the `load` of a node: as if its prompts had just come."""
    here = state.nodes[node]
    return (here.pass_seconds + here.prompt_seconds / PROMPT_MEMORY) / rules.tpot


@compiled
def own_load(state: State, rules: Rules, node: int, prompt: int) -> float:
    """What the prompt of a request adds to the `load` of a node: its pass, and its place in the cache that decode reads. It is
    the same on all nodes of a kind."""
    cached = _seconds(state, node, 0, 0.0, float(prompt), 0) - _seconds(state, node, 0, 0.0, 0.0, 0)
    return (cached + prompt_seconds(state, node, prompt) / PROMPT_MEMORY) / rules.tpot


@compiled
def prompt_seconds(state: State, node: int, prompt: int) -> float:
    """What a prompt adds to the passes of all stages of a node [s]."""
    whole = _seconds(state, node, prompt, float(prompt) * prompt, 0.0, 1 if prompt > 1 else 0)
    return whole - _seconds(state, node, 0, 0.0, 0.0, 0)


@compiled
def note_pass(state: State, node: int) -> None:
    """Keep how long a pass of all requests that generate on a node takes with one more [s]."""
    state.nodes[node].pass_seconds = batch_seconds(state, node, state.nodes[node].generating + 1)


@compiled
def batch_seconds(state: State, node: int, requests: int) -> float:
    """How long a decode pass of so many requests takes on all stages of a node [s], if their prompts are like those of the
    requests that generate there, and half of their answers is there."""
    here = state.nodes[node]
    prompts = float(here.prompt_tokens)
    if here.generating >= requests:
        prompts *= requests / here.generating
    cached = prompts + requests * state.counters[0].expected_output / 2.0
    return _seconds(state, node, requests, float(requests), cached, 0)


@compiled
def note_passes(state: State) -> None:
    """The same for all nodes."""
    for node in range(state.nodes.size):
        note_pass(state, node)


@compiled
def note_placed(state: State, rules: Rules, node: int, now: float, prompt: int) -> None:
    """A request came to a node, and counts in `generating` if it asks for more than one token."""
    here = state.nodes[node]
    faded = here.prompt_seconds * math.exp((here.prompted_at - now) / (PROMPT_MEMORY * rules.tpot))
    here.prompt_seconds, here.prompted_at = faded + prompt_seconds(state, node, prompt), now
    note_pass(state, node)
    # What was learned of stage times and outputs reaches nodes that get nothing too, one at a time.
    note_pass(state, state.counters[0].sequence % state.nodes.size)


@inlined
def _seconds(state: State, node: int, tokens: int, squares: float, cached: float, prefills: int) -> float:
    """A pass on all stages of a node [s]."""
    times, seconds = state.times, 0.0
    kind = times.kind_of[node]
    for stage in range(state.forward.shape[1]):
        seconds += kind_seconds(times, kind, SERVE_PASS, stage, tokens, squares, cached, prefills)
    return seconds
