"""Classes of requests: `interactive` ones have token deadlines, `batch` ones a completion window.

Batch requests fill time like training does. Their key is when they are promoted, so that they come behind interactive ones
until their window is nearly over. Where decode is paced they share the time that interactive requests leave with training.
"""

from __future__ import annotations

from typing import Literal

ServiceClass = Literal["interactive", "batch"]
"""Of a request. A batch request fills time like training does, and waits for interactive ones."""

PROMOTED = 0.9
"""After this share of its completion window a batch request goes with the interactive ones."""

LARGEST_CLAIM = 20.0
"""Of batch requests, in what decode is paced to."""
CLAIM_IN_FLIGHT = 2.0
"""So much more, in the same unit, they have to be owed for each batch in flight."""


def promotion(arrival: float, window: float) -> float:
    """When a batch request of `arrival` [s] with a completion window of so many seconds goes with the interactive ones."""
    return arrival + PROMOTED * window


def waits_as_batch(patient: bool, key: float, now: float) -> bool:
    """Whether a request waits behind interactive ones at `now` [s]: it is `patient`, and its `key`, its promotion, to come."""
    return patient and key > now


def batch_debt_after(debt: float, share: float, trained: float, served: float, tpot: float) -> float:
    """Stage seconds that batch requests are owed on a node after `trained` seconds of training and `served` of their own, both
    on all stages: they have a claim to `share` of both together. They are never owed more than `LARGEST_CLAIM`, since what they
    did not ask for in time they do not get in one piece later; `tpot`: what decode is paced to [s]."""
    return min(debt + share * trained - (1.0 - share) * served, LARGEST_CLAIM * tpot)


def may_fill(
    idle: bool, debt: float, tpot: float, at_first_stage: int, in_flight: int, generating: int, stages: int
) -> bool:
    """Whether a node may run a batch of batch requests alone, if it ends before the next interactive batch is due.

    The first stage is `idle` and no training waits there; or they are owed time (`debt`), and more of it for each batch with
    such requests that is `in_flight`: the larger their batches are, the better. There is always room left for an interactive
    batch: so many batches of the node are `at_first_stage`, and have requests that are `generating`.
    """
    return at_first_stage == 0 and generating < stages and (idle or debt > in_flight * CLAIM_IN_FLIGHT * tpot)


def takes_prompts(idle: bool, debt: float) -> bool:
    """Whether prompts of batch requests may join a batch; the next tokens of those that have begun cost little, and may."""
    return idle or debt > 0.0
