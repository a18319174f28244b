import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.policy.drift import DEFAULT_LIMIT, FEWEST, Drift, relative_error
from lemix_hpc.policy.events import PassMeasured
from lemix_hpc.policy.latency import Affine, LatencyModel, Shape
from lemix_hpc.policy.recalibration import Measured, Recalibrated

LIMIT = DEFAULT_LIMIT
WITHIN = st.floats(1 / (1 + LIMIT), 1 + LIMIT)


QUARTER = Affine(0.25, 0, 0)


def watched(ratios: list[float]) -> Drift | None:
    """The alarm after passes at times 0, 1, 2, ... that take these multiples of their predicted time."""
    recalibrated = Recalibrated(LatencyModel((QUARTER,) * 3, (QUARTER,) * 3), limit=LIMIT)
    for time, ratio in enumerate(ratios):
        recalibrated.measured(Measured(PassMeasured(time, 0, 2, "serve", Shape.of((1,)), 0.25 * ratio)), None)
    return next(iter(recalibrated.drifts), None)


def test_twice_and_half_as_long_are_equally_wrong_and_one_pass_never_counts_as_more_than_all() -> None:
    assert relative_error(1.0, 1.25) == relative_error(1.25, 1.0) == 0.25
    assert relative_error(1.0, 1e9) == relative_error(1.0, 0.0) == 1.0


@given(st.lists(WITHIN, max_size=300))
def test_no_alarm_while_every_pass_is_within_the_limit(ratios: list[float]) -> None:
    assert watched(ratios) is None


@pytest.mark.parametrize("ratio", [3.0, 1 / 3])
def test_a_file_that_is_wrong_raises_an_alarm_once_there_are_enough_passes(ratio: float) -> None:
    assert watched([ratio] * (FEWEST - 1)) is None
    drift = watched([ratio] * 300)
    assert drift is not None
    assert drift.ratio == pytest.approx(ratio)
    assert drift == Drift(2, "serve", drift.ratio, since_s=FEWEST - 1)


@given(st.lists(WITHIN.map(lambda ratio: 1 + (ratio - 1) / 2), min_size=100, max_size=200), st.floats(10, 1e6))
def test_pauses_of_the_machine_are_no_drift(ratios: list[float], pause: float) -> None:
    ratios[50] = ratios[70] = pause
    assert watched(ratios) is None


def test_the_alarm_ends_at_half_the_limit_and_begins_anew_with_the_same_entry() -> None:
    ended = watched([3.0] * 100 + [1.0] * 500)
    assert ended is not None and ended.since_s == FEWEST - 1
    # The error falls from 1 as (1 - 1/100)^n, to half the limit.
    assert ended.until_s == 99 + math.ceil(math.log(LIMIT / 2) / math.log(0.99))
    assert ended.ratio == pytest.approx(3.0), "what it was, not what is left of it"
    again = watched([3.0] * 100 + [1.0] * 500 + [0.2] * 300)
    assert again is not None and again.until_s is None
    assert again.since_s == ended.since_s
    assert again.ratio == pytest.approx(0.2, rel=0.15), "the farthest of both"


def test_no_alarm_flickers_between_the_limits() -> None:
    """Passes that alternate around a mean error below the limit, after a drift, neither end it nor raise another."""
    drift = watched([3.0] * 100 + [1.0, 1.8] * 300)
    assert drift is not None and drift.until_s is None
