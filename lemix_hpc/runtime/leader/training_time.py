"""The time that batch requests share with training."""

from __future__ import annotations

from collections.abc import Iterable

from lemix_hpc.runtime.transport import messages as m

_TRAINING = ("forward", "backward", "step")


def trained_seconds(spans: Iterable[m.WorkSpan]) -> float:
    """What stages report of training [s]."""
    return sum(span.end - span.start for span in spans if span.kind in _TRAINING)
