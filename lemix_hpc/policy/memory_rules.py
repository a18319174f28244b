"""What a task does that does not fit into the memory of a stage: wait, move training aside, or take caches away.

The runtime's stages can call these functions as they are; the simulator compiles the same ones.
"""

from __future__ import annotations

RUN, WAIT, OFFLOAD, PREEMPT = range(4)
"""What to do now. OFFLOAD and PREEMPT are for one victim; then ask again."""


def decide(
    room: int, need: int, others: int, leaving: int, offloadable: int, preemptible: int, now: float, deadline: float
) -> int:
    """The next thing to do for a task that needs memory on a stage.

    Bytes: `room` that is free, what `others` hold, `leaving` that is on its way to the host, `offloadable` activations of
    training that could follow, and `preemptible` cache of requests that could be taken away. Nothing is moved before the
    `deadline` [s]. Caches come last: activations come back as they were, a cache is computed again. What nobody could make
    room for runs all the same: it would wait for ever.
    """
    if need <= room or others <= 0:
        return RUN
    if need <= room + leaving or now < deadline:
        return WAIT
    if offloadable > 0:
        return OFFLOAD
    if preemptible > 0:
        return PREEMPT
    return WAIT


def room(capacity: int, kappa: float, resting: int, to_come_back: int) -> int:
    """Bytes that tasks may take on a stage; below 0 when what rests there is too much by itself.

    `resting`: weights and optimizer state. With offloading, `to_come_back` bytes are kept free for activations that return:
    whatever waits for whatever else, a backward gets its activations again.
    """
    return int(kappa * capacity) - resting - to_come_back


def spare_time(arrival: float, expected: float) -> float:
    """Slack of a request that is expected to end at `expected` [s], less the limit, which is the same for all requests."""
    return arrival - expected
