"""The figures of the live view."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.records.schema import ServedTask, StageUse
from lemix_hpc.runtime.scheduler.live_figures import CURVE_POINTS, LATELY_S, LiveFigures, LossCurve


def finished(seconds: float, predicted: float | None = None) -> ServedTask:
    return ServedTask("r", "finished", 1.0, 8, finished=1.0 + seconds, predicted_response_s=predicted)


def test_losses_and_responses() -> None:
    live = LiveFigures(nodes=1, stages=2)
    assert (live.loss, live.response_ms_p50, live.forecast_error, live.attainment([1.0])) == (None, None, None, [])
    live.learned(9.0)
    live.learned(math.nan)
    assert (live.loss, live.lost_losses) == (None, 1), "the last good one is no news"
    live.learned(4.0)
    live.learned(2.0)
    for seconds in (0.25, 0.125, 0.5):
        live.ended(finished(seconds, predicted=0.25))
    live.ended(ServedTask("r", "rejected", 1.0, 8))
    live.ended(ServedTask("b", "finished", 1.0, 8, finished=9.0, service="batch"))
    assert live.loss == 3.0
    assert live.response_ms_p50 == 500.0, "of all that finished"
    assert live.forecast_error == 0.5
    assert live.attainment([0.25, 1.0]) == [(0.25, 0.5), (1.0, 0.75)], "batch requests have other limits"


def test_what_stages_do_is_of_the_last_seconds() -> None:
    live = LiveFigures(nodes=1, stages=2)
    live.worked(0, 0, "serve", 7.0)
    first = live.look(10.0, served=100, tokens=5000)
    assert (first.stages, first.requests_per_s) == ([[StageUse(), StageUse()]], 0.0), "what was before is not of late"
    live.worked(0, 1, "backward", 0.5)
    live.worked(0, 1, "save", 0.25)
    lately = live.look(11.0, served=104, tokens=5512)
    assert lately.stages == [[StageUse(), StageUse(backward=0.5, other=0.25)]]
    assert (lately.requests_per_s, lately.tokens_per_s) == (4.0, 512.0)
    live.look(11.0 + LATELY_S, served=104, tokens=5512)
    later = live.look(11.5 + LATELY_S, served=104, tokens=5512)
    assert later.stages == [[StageUse(), StageUse()]] and later.requests_per_s == 0.0


def test_work_side_by_side_fills_a_stage_once() -> None:
    live = LiveFigures(nodes=1, stages=1)
    live.look(0.0, 0, 0)
    live.worked(0, 0, "serve", 3.0)
    live.worked(0, 0, "forward", 1.0)
    [[use]] = live.look(1.0, 0, 0).stages
    assert (use.serve, use.forward, use.idle) == (0.75, 0.25, 0.0)


@given(st.lists(st.floats(-10.0, 10.0), min_size=1, max_size=1500))
def test_the_course_of_the_loss_is_of_means_of_equally_many(losses: list[float]) -> None:
    curve = LossCurve()
    for loss in losses:
        curve.add(loss)
    each = 1
    while len(losses) // each >= CURVE_POINTS:
        each *= 2
    whole = [losses[start : start + each] for start in range(0, len(losses) - each + 1, each)]
    assert len(curve.points) == len(whole) < CURVE_POINTS
    assert curve.points == pytest.approx([sum(part) / each for part in whole], abs=1e-9)
