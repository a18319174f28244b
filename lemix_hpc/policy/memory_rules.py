"""What a task does that does not fit into the memory of a stage: wait, move training aside, or take caches away.

The runtime's stages can call these functions as they are; the simulator compiles the same ones.
"""

from __future__ import annotations

RUN, WAIT, OFFLOAD, PREEMPT = range(4)
"""What to do now. OFFLOAD and PREEMPT are for one victim; then ask again."""


def decide(
    room: int, need: int, others: int, won: int, to_be_won: int, preemptible: int, now: float, deadline: float
) -> int:
    """The next thing to do for a task that needs memory on a stage.

    Bytes: `room` that is free; what `others` hold, or is kept for them; what will be `won` when all that is on its way to the
    host is there, and what is `to_be_won` in all if all activations follow that could; and `preemptible` cache of requests
    that could be taken away. Nothing is moved before the `deadline` [s], and activations only where that is enough: whoever
    waits for their backward waits for them to come back, too. Caches come last: activations come back as they were, a cache is
    computed again. What nobody could make room for runs all the same: it would wait for ever.
    """
    if need <= room or others <= 0:
        return RUN
    if need <= room + won or now < deadline:
        return WAIT
    if need <= room + to_be_won:
        return OFFLOAD
    if preemptible > 0:
        return PREEMPT
    return WAIT


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
