"""The numeric form of the policy's events: what compiled code is told, and what a simulated run writes down."""

from __future__ import annotations

from typing import Any

import numpy as np

from lemix_hpc.policy.events import Event, RequestArrived, StageFinished, TaskFinished, Tick, TrainingClosed
from lemix_hpc.policy.state import NONE

ARRIVED, OFFERED, CLOSED, PASSED_STAGE, ENDED, TICKED = range(6)
"""Kinds of events, in the order of `lemix_hpc.policy.events`, which also says what their fields mean."""

EVENT = np.dtype(
    [
        ("kind", "i8"),
        ("time", "f8"),
        ("node", "i8"),
        ("stage", "i8"),
        ("task", "i8"),  # of an offered group its number
        ("prompt", "i8"),
        ("output", "i8"),
        ("start", "f8"),
        ("end", "f8"),
        ("backward", "?"),
        ("last", "?"),
        ("patient", "?"),
    ],
    align=True,
)
"""An event. Fields that its kind does not have mean nothing, and nor do the lengths of an offered group fit in here."""


def event_of(
    kind: int,
    time: float,
    node: int,
    stage: int,
    task: int,
    prompt: int,
    output: int,
    start: float,
    end: float,
    backward: bool,
    last: bool,
    patient: bool,
) -> Event:
    """The event of a record's fields, of all but an offered group."""
    if kind == ARRIVED:
        return RequestArrived(time, task, prompt, output, patient)
    if kind == CLOSED:
        return TrainingClosed(time)
    if kind == PASSED_STAGE:
        return StageFinished(time, node, stage, task, start, end, backward, last)
    if kind == ENDED:
        return TaskFinished(time, node, task, output)
    return Tick(time)


def record_of(event: Event) -> tuple[Any, ...]:
    """The fields of an event's record. Raises TypeError for what has none: an offered group, a measured pass, no event."""
    match event:
        case StageFinished(time, node, stage, task, start, end, backward, last):
            return PASSED_STAGE, time, node, stage, task, 0, 0, start, end, backward, last, False
        case RequestArrived(time, task, prompt, output, patient):
            return ARRIVED, time, NONE, NONE, task, prompt, output, 0.0, 0.0, False, False, patient
        case TaskFinished(time, node, task, output):
            return ENDED, time, node, NONE, task, 0, output, 0.0, 0.0, False, False, False
        case Tick(time):
            return TICKED, time, NONE, NONE, NONE, 0, 0, 0.0, 0.0, False, False, False
        case TrainingClosed(time):
            return CLOSED, time, NONE, NONE, NONE, 0, 0, 0.0, 0.0, False, False, False
        case _:
            raise TypeError(f"no event: {event!r}")
