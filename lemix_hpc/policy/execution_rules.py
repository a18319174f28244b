"""What a node does next: which work a stage picks, when its leader forms a batch, when training is offered.

The runtime calls these functions as they are, the simulator compiles the same ones.
"""

from __future__ import annotations

import math

NOTHING, SERVE, COMMIT, BACKWARD, FORWARD = range(5)
"""Kinds of work that can be ready on a stage; a commit applies a weight update."""

LARGEST_DEBT = 0.25
"""Stage seconds that training can be owed at most: what it did not ask for in time it does not get in one piece later."""

AHEAD = 2
"""Batches at the first stage: one running, one waiting, so that it never waits for the leader's answer."""
MOST_IN_FLIGHT = 64
"""Batches on a node whose requests only have their prompts scored: what waits between stages keeps all of them busy."""

WAIT, OFFER, CLOSE, END = range(4)
"""What to do about training: nothing yet; offer a group; close it, and drop what was offered; end it, since all was given."""


def pick(serve: float, commit: float, backward: float, forward: float, serving_first: bool, owed: bool) -> int:
    """The kind of work to run next, NOTHING when none is ready.

    Each kind's argument is since when its next piece of work is ready [s], inf when there is none. Serving first: before a
    weight update, so that nobody waits for it; else in the order in which work became ready. When training is `owed` time,
    serving comes last. A backward goes before a forward, so that memory is freed first, and no second micro-batch of the last
    stage needs the weights of its forward.
    """
    training = min(commit, backward, forward)
    if serve < math.inf and not (owed and training < math.inf) and (serving_first or serve < training):
        return SERVE
    if training == math.inf:
        return NOTHING
    if commit < math.inf and (serving_first or owed or commit == training):
        return COMMIT
    return BACKWARD if backward < math.inf else FORWARD


def debt_after(debt: float, share: float, served: float, trained: float) -> float:
    """Stage seconds that training is owed after `served` seconds of serving and `trained` of training work.

    Training has a claim to `share` of the stage's busy time; it is owed when the debt is positive.
    """
    debt += share * served - (1.0 - share) * trained
    return max(min(debt, LARGEST_DEBT), -LARGEST_DEBT)


def reports_ahead(stage: int, stages: int, backward: bool, flush: bool) -> bool:
    """Whether a stage that has a weight update ready reports it before the last piece of the training pass that it runs, and
    not only behind it: the first stage may commit it meanwhile, and a batch of the new weights waits for one piece at most.

    Not on the first stage, which commits. Not during a forward of the last one, whose backward needs the same weights. Not with
    a `flush` between steps: nothing runs then when they are committed, and several micro-batches may need the same weights.
    """
    return stage > 0 and not flush and (backward or stage < stages - 1)


def forward_limit(stage: int, in_flight: int, group_size: int, gpipe: bool) -> int:
    """How many micro-batches may be between forward and backward on a stage, with so many `in_flight` on a node.

    GPipe runs all forwards of a group first; 1F1B (and the asynchronous release, which is 1F1B without the flush)
    needs no more than one per stage from here to the end of the pipeline, if all take equally long.
    """
    return group_size if gpipe else in_flight - stage


def may_form_batch(
    generates: bool, at_first_stage: int, in_flight: int, generating: int, stages: int, paced: bool
) -> bool:
    """Whether a node's leader may form another batch, of a request that `generates` or is only scored, and others.

    So many batches of the node wait or run `at_first_stage`, are `in_flight` in all, and have requests that are `generating`.
    Those come back for every token: with more batches of them than stages to fill, batches only get smaller. Where decode is
    `paced`, training fills what time is left between as many batches as there are stages; one more would lie between each
    request and its next token.
    """
    if at_first_stage >= AHEAD or in_flight >= MOST_IN_FLIGHT:
        return False
    return not generates or generating < stages + (not paced)


def supply_training(over: bool, exhausted: bool, offered: int, ahead: int) -> int:
    """What to do about training next: groups are offered `ahead` of the policy's need, as many as that.

    `over`: serving has ended, with which training without an end ends, or the policy has refused some: the allocation ends.
    `exhausted`: all groups of a limited amount were given. `offered` groups have not begun.
    """
    if over:
        return CLOSE
    if exhausted:
        return END if offered == 0 else WAIT
    return OFFER if offered < ahead else WAIT
