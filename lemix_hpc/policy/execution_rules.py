"""What a stage does next. The runtime's stages call these functions as they are, the simulator compiles the same ones."""

from __future__ import annotations

import math

NOTHING, SERVE, COMMIT, BACKWARD, FORWARD = range(5)
"""Kinds of work that can be ready on a stage; a commit applies a weight update."""

LARGEST_DEBT = 0.25
"""Stage seconds that training can be owed at most: what it did not ask for in time it does not get in one piece later."""


def pick(serve: float, commit: float, backward: float, forward: float, serving_first: bool, owed: bool) -> int:
    """The kind of work to run next, NOTHING when none is ready.

    Each kind's argument is since when its next piece of work is ready [s], inf when there is none. Serving first: before a
    weight update, so that nobody waits for it; else in the order in which work became ready. When training is `owed` time,
    serving comes last. A backward goes before a forward, so that memory is freed first.
    """
    training = min(commit, backward, forward)
    if serve < math.inf and not (owed and training < math.inf) and (serving_first or serve < training):
        return SERVE
    if training == math.inf:
        return NOTHING
    if commit < math.inf and (serving_first or owed or commit == training):
        return COMMIT
    if backward < math.inf and (serving_first or owed or backward == training):
        return BACKWARD
    return FORWARD


def debt_after(debt: float, share: float, served: float, trained: float) -> float:
    """Stage seconds that training is owed after `served` seconds of serving and `trained` of training work.

    Training has a claim to `share` of the stage's busy time; it is owed when the debt is positive.
    """
    debt += share * served - (1.0 - share) * trained
    return max(min(debt, LARGEST_DEBT), -LARGEST_DEBT)


def forward_limit(stage: int, stages: int, group_size: int, gpipe: bool) -> int:
    """How many micro-batches may be between forward and backward on a stage.

    GPipe runs all forwards of a group first; 1F1B (and the asynchronous release, which is 1F1B without the flush)
    needs no more than one per stage from here to the end of the pipeline.
    """
    return group_size if gpipe else stages - stage
