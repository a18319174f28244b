"""The numeric form of the policy's events: what compiled code is told, and what a simulated run writes down."""

from __future__ import annotations

from typing import Any

import numpy as np

from lemix_hpc.policy.events import Event, RequestArrived, StageFinished, TaskFinished, Tick, TrainingClosed
from lemix_hpc.policy.state import NONE

ARRIVED, OFFERED, CLOSED, PASSED_STAGE, PASSED_ALL, ENDED, TICKED = range(7)
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
        ("patient", "?"),
    ],
    align=True,
)
"""An event. Fields that its kind does not have mean nothing, and neither the lengths of an offered group nor the times of an
answer on all stages fit in here."""


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
    patient: bool,
) -> Event:
    """The event of a record's fields, if all of it fits in there."""
    if kind == ARRIVED:
        return RequestArrived(time, task, prompt, output, patient)
    if kind == CLOSED:
        return TrainingClosed(time)
    if kind == PASSED_STAGE:
        return StageFinished(time, node, stage, task, start, end, backward)
    if kind == ENDED:
        return TaskFinished(time, node, task, output)
    return Tick(time)


def record_of(event: Event) -> tuple[Any, ...]:
    """The fields of an event's record. Raises TypeError for what has none: groups, answers, measured passes, no event."""
    match event:
        case StageFinished(time, node, stage, task, start, end, backward):
            return PASSED_STAGE, time, node, stage, task, 0, 0, start, end, backward, False
        case RequestArrived(time, task, prompt, output, patient):
            return ARRIVED, time, NONE, NONE, task, prompt, output, 0.0, 0.0, False, patient
        case TaskFinished(time, node, task, output):
            return ENDED, time, node, NONE, task, 0, output, 0.0, 0.0, False, False
        case Tick(time):
            return TICKED, time, NONE, NONE, NONE, 0, 0, 0.0, 0.0, False, False
        case TrainingClosed(time):
            return CLOSED, time, NONE, NONE, NONE, 0, 0, 0.0, 0.0, False, False
        case _:
            raise TypeError(f"no event: {event!r}")
