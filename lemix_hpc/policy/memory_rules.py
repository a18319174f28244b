"""What a task does that does not fit into the memory of a stage: wait, move training aside, or take caches away.

Requests go first, as everywhere. While one waits for memory no micro-batch begins that came later. Training waits for memory
until it is there; only where it has stood still for as long as admission may hold it back does it take caches away.

The runtime's stages can call these functions as they are; the simulator compiles the same ones.
"""

from __future__ import annotations

import math

RUN, WAIT, OFFLOAD, PREEMPT = range(4)
"""What to do now. OFFLOAD and PREEMPT are for one victim; then ask again."""


def decide(
    room: int,
    need: int,
    others: int,
    won: int,
    to_be_won: int,
    preemptible: int,
    now: float,
    moves_from: float,
    preempts_from: float,
) -> int:
    """The next thing to do for a task that needs memory on a stage.

    Bytes: `room` that is free; what `others` hold, or is kept for them; what will be `won` when all that is on its way to the
    host is there, and what is `to_be_won` in all if all activations follow that could; and `preemptible` cache of requests
    that could be taken away. Activations move only where that is enough, `moves_from` some time on [s]: whoever waits for
    their backward waits for them to come back, too. Caches come last, `preempts_from` another time on: activations come back
    as they were, a cache is computed again. What nobody could make room for runs all the same: it would wait for ever.
    """
    if need <= room or others <= 0:
        return RUN
    if need <= room + won:
        return WAIT
    if need <= room + to_be_won:
        return OFFLOAD if now >= moves_from else WAIT
    if preemptible > 0 and now >= preempts_from:
        return PREEMPT
    return WAIT


def yields(training_since: float, serving_since: float, in_flight: int, gpipe: bool) -> bool:
    """Whether a micro-batch takes no memory yet, since a request has waited for some for longer (inf: none does) [s].

    `in_flight` micro-batches of the node have memory and end without this one, except under GPipe: there their backwards wait
    for all forwards of the group.
    """
    return serving_since < training_since and not (gpipe and in_flight > 0)


def waits_for_training(training_since: float, serving_since: float, patience: float, now: float) -> bool:
    """Whether a request takes no memory before a micro-batch has some that has waited for longer than it (inf: not at all), and
    as long as its patience [s]."""
    return training_since < serving_since and now >= training_since + patience


def moves_for_training(in_flight: int, useful: int, gpipe: bool) -> bool:
    """Whether activations move aside for another micro-batch, beside those `in_flight` on the node.

    With more than are `useful` stages are no busier, and those that leave have two ways over the link before their backwards.
    Under GPipe no backward gives anything back before all forwards of its group have run.
    """
    return gpipe or in_flight < useful


def patience_of_training(max_wait: float, max_hold: float, in_flight: int, gpipe: bool) -> float:
    """How long a micro-batch waits before it takes caches away, and requests that come later take no more memory [s].

    For as long as admission may hold it back, `max_hold`, where its node has no other in flight; else those end and give theirs
    back. Under GPipe they wait for it in turn, so that a group that has begun does not wait longer than a request.
    """
    if in_flight == 0:
        return max(max_wait, max_hold)
    return max_wait if gpipe else math.inf


def room(capacity: int, kappa: float, resting: int) -> int:
    """Bytes that tasks may take on a stage; below 0 when weights and optimizer state, which rest there, are too much."""
    return int(kappa * capacity) - resting


def won_by_offloading(total: int, largest: int, kept: int) -> int:
    """Bytes that others can take on a stage once activations of `total` bytes are on the host, `largest` of one micro-batch.

    They come back one micro-batch at a time, and there is always room for the largest that is away: whatever waits for whatever
    else, a backward gets its activations again. `kept` bytes are kept for that already. So the first one wins nothing.
    """
    return total - max(0, largest - kept)


def micro_batches_needed(in_group: int, gpipe: bool, offloads: bool) -> int:
    """How many micro-batches of the largest size a stage has to have room for, so that training can go on.

    Under GPipe all forwards of a group, of so many micro-batches, come before its backwards, and where a stage `offloads`, room
    is kept for one that is away meanwhile. In every other order backwards wait for no forward.
    """
    if not gpipe:
        return 1
    return min(2, in_group) if offloads else in_group


def spare_time(arrival: float, expected: float) -> float:
    """Slack of a request that is expected to end at `expected` [s], less the limit, which is the same for all requests."""
    return arrival - expected
