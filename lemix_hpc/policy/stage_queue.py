"""What a stage does next: the order in which ready work is picked."""

from __future__ import annotations

from collections.abc import Set
from enum import Enum


class Ready(Enum):
    """Kinds of work that can be ready on a stage."""

    SERVE = "serve"
    COMMIT = "commit"
    BACKWARD = "backward"
    FORWARD = "forward"


SERVING_FIRST = (Ready.SERVE, Ready.COMMIT, Ready.BACKWARD, Ready.FORWARD)
"""Serving before a weight update, so that nobody waits for it; backward before forward, so that memory is freed first."""


def pick(ready: Set[Ready]) -> Ready | None:
    """The kind of work to run next, or None when nothing is ready."""
    return next((kind for kind in SERVING_FIRST if kind in ready), None)


def forward_limit(stage: int, stages: int, *, group_size: int, gpipe: bool) -> int:
    """How many micro-batches may be between forward and backward on a stage.

    GPipe runs all forwards of a group first; 1F1B (and the asynchronous release, which is 1F1B without the flush)
    needs no more than one per stage from here to the end of the pipeline.
    """
    return group_size if gpipe else stages - stage
