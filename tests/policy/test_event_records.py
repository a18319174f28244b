from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from lemix_hpc.policy.event_records import EVENT, event_of, record_of
from lemix_hpc.policy.events import (
    Event,
    GroupOffered,
    RequestArrived,
    StageFinished,
    TaskFinished,
    Tick,
    TrainingClosed,
)


@pytest.mark.parametrize(
    "event",
    [
        RequestArrived(0.5, 3, prompt=7, output=2),
        RequestArrived(0.5, 3, prompt=7, output=2, patient=True),
        TrainingClosed(1.5),
        StageFinished(2.5, 1, 2, 3, start=1.25, end=2.25, backward=True),
        StageFinished(2.5, 1, 2, 3, start=1.25, end=2.25),
        TaskFinished(3.5, 1, 3, output=2),
        Tick(4.5),
    ],
)
def test_an_event_survives_its_record(event: Event) -> None:
    records = np.zeros(1, EVENT)
    records[0] = record_of(event)
    (fields,) = records.tolist()
    assert event_of(*fields) == event


@pytest.mark.parametrize("event", [GroupOffered(0.0, 0, (1,), 1, (8,)), "an event"])
def test_what_has_no_record_is_refused(event: Any) -> None:
    with pytest.raises(TypeError, match="no event"):
        record_of(cast(Event, event))
