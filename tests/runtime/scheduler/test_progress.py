"""The figures of the live view."""

import math

from lemix_hpc.runtime.scheduler.progress import LiveFigures


def test_live_figures() -> None:
    live = LiveFigures(nodes=1, stages=2)
    assert live.loss is None
    assert live.response_ms_p50 is None
    live.worked(0, 1, 0.5)
    live.learned(9.0)
    live.learned(math.nan)
    assert (live.loss, live.lost_losses) == (None, 1), "the last good one is no news"
    live.learned(4.0)
    live.learned(2.0)
    for seconds in (0.3, 0.1, 0.2):
        live.responded(seconds)
    assert live.loss == 3.0
    assert live.response_ms_p50 == 200.0
    assert live.look(2.0) == [[0.0, 0.25]]
    assert live.look(3.0) == [[0.0, 0.0]], "each look starts afresh"
