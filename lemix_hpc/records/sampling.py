"""Which work of a run is written down (`report.spans`): all, that of one second in ten, or none."""

from __future__ import annotations

from typing import Literal

Sampling = Literal["all", "sampled", "off"]
PERIOD_S = 10.0
SAMPLE_S = 1.0
"""At the beginning of each period work that starts is written down, on all stages at once: so what follows upon it is, too."""


def is_kept(sampling: Sampling, start: float) -> bool:
    """Whether work that starts then [s of the run] is written down."""
    return sampling == "all" or (sampling == "sampled" and start % PERIOD_S < SAMPLE_S)


def sample_of(sampling: Sampling, start: float) -> float:
    """Since when [s of the run] all work until then was written down."""
    return start // PERIOD_S * PERIOD_S if sampling == "sampled" else 0.0
