"""When the next batch of a node is due: not before a request needs it, so that batches are large and training gets the rest.

A decode pass takes nearly as long for four requests as for sixty. A request has a deadline for its first token, and for each
next one; tokens that came early are credit for later ones. The runtime calls these functions as they are, the simulator
compiles the same ones.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Pace(NamedTuple):
    """Limits [s]: `ttft` from the arrival of a request to its first token, `tpot` from each token to the next one."""

    ttft: float
    tpot: float


AS_SOON_AS_POSSIBLE = Pace(0.0, 0.0)
"""What is not paced."""

FIRST_MARGIN, LARGEST_MARGIN = 1.0, 4.0
"""Tokens are aimed at so long before their deadlines, in `tpot`: at first, and at most."""
LATE_ALLOWED = 0.03
"""The share of passes that may end after the first deadline among their requests; the margin is learned so."""
MARGIN_STEP = 0.2
"""How far one pass moves the margin, in `tpot`."""
PATIENCE = 0.05
"""For so long, in `tpot`, a first stage waits for more training before a batch comes early."""
RECENT, NO_PATIENCE = 20.0, 0.001
"""Where nothing has trained for so long, in `tpot`, it waits for no more than so long, next to nothing."""
PASS_SHARE, PROMPT_SHARE, LEAST_PART = 0.8, 0.1, 16
"""A batch takes up to so much of `tpot` on all stages with the prompts in it, which are cut to that: what runs on a stage when
it comes takes the rest. Where decode alone takes that much, prompts add the second share; no part of one has fewer tokens."""


LATE_FOR_PROMPTS = 3.0
"""By so much, in `tpot`, tokens may be late for a first token to be in time: later ones make up for it."""
FIRST_RESERVE = 1.0
"""Prompts are begun so long before they have to, in `tpot`, for first tokens to be in time: training is in their way."""


def token_deadline(pace: Pace, arrival: float, first_token: float, produced: int) -> float:
    """When the next token of a request is due that has `produced` some, the first one at `first_token` [s]."""
    return arrival + pace.ttft if produced == 0 else first_token + produced * pace.tpot


def next_deadline(pace: Pace, arrival: float, first_token: float, produced: int, partial: bool, ends: float) -> float:
    """When the token of a request is due that comes after the batch that it is in [s], which `ends` then; of one whose prompt
    goes on (`partial`) that is the first one."""
    if partial:
        return arrival + pace.ttft
    return ends + pace.tpot if produced == 0 else first_token + (produced + 1) * pace.tpot


def batch_due(deadline: float, seconds: float, margin: float) -> float:
    """When to begin with all requests that are here, so that they pass all stages in time [s].

    `deadline`: the first one among them; `seconds`: predicted, of all of them in one batch on all stages.
    """
    return deadline - seconds - margin


def shared_seconds(pace: Pace, alone: float, together: float) -> float:
    """What a batch is taken to need on all stages [s] that takes `alone` of interactive requests and `together` with batch
    requests: those lengthen it as much as prompts may. It begins so much earlier, so that no deadline moves."""
    return min(together, max(PASS_SHARE * pace.tpot, alone + PROMPT_SHARE * pace.tpot))


def room_for_batch(pace: Pace, alone: float, deadline: float, now: float) -> float:
    """How long a batch that takes `alone` seconds on all stages may take with batch requests [s]: it still ends before the
    first `deadline` of its interactive ones."""
    return min(max(PASS_SHARE * pace.tpot, alone + PROMPT_SHARE * pace.tpot), deadline - now)


def longest_batch(pace: Pace, decode: float) -> float:
    """How long a batch may take on all stages with its prompts [s], if it takes `decode` without."""
    return max(PASS_SHARE * pace.tpot, decode + PROMPT_SHARE * pace.tpot)


def seconds_through(longest: float, decode: float, together: float) -> float:
    """How long it takes until prompts are through that would take `together` seconds with everybody's next token in one batch,
    if they are cut so that batches take the `longest` time: each has the tokens, too, which take `decode` seconds [s]."""
    if together <= longest:
        return together
    prompts = together - decode
    return prompts + decode * math.ceil(prompts / (longest - decode))


def prompts_due(pace: Pace, deadline: float, through: float, margin: float) -> float:
    """When to begin with prompts that are `through` in so many seconds, the first of which has this `deadline` [s]."""
    return deadline - through - max(margin, FIRST_RESERVE * pace.tpot)


def longest_in_time(pace: Pace, longest: float, decode: float, prompts: float, left: float) -> float:
    """How long a batch may take [s] whose prompts, of so many seconds, are to be through in the seconds that are `left`.

    That is the `longest` time as long as its parts are through then, or if nothing helps; else prompts are cut in so few parts
    that they are. Each part comes in a batch with everybody's next token, which take `decode` seconds.
    """
    if decode <= 0.0 or prompts + decode > left:
        return longest
    parts = max(1, math.floor((left - FIRST_RESERVE * pace.tpot - prompts) / decode))
    return max(longest, decode + prompts / parts)


def idle_due(pace: Pace, idle_since: float, trained: float) -> float:
    """When a batch may begin although none is due, as the first stage has no training [s]: nothing idles that could run.
    `trained`: when a stage of the node has trained last."""
    patience = PATIENCE if idle_since - trained <= RECENT * pace.tpot else NO_PATIENCE
    return idle_since + patience * pace.tpot


def margin_after(pace: Pace, margin: float, late: bool) -> float:
    """The margin [s] after a pass that came before the first deadline among its requests, or `late`.

    It follows the quantile of how late passes are: it rests where `LATE_ALLOWED` of them are late.
    """
    step = MARGIN_STEP * pace.tpot
    moved = margin + step * (1.0 - LATE_ALLOWED) if late else margin - step * LATE_ALLOWED
    return min(max(moved, 0.0), LARGEST_MARGIN * pace.tpot)
