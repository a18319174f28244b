"""What batch requests are owed, and when they run."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.policy.classes import LARGEST_CLAIM, batch_debt_after, may_fill, promotion, takes_prompts, waits_as_batch
from lemix_hpc.policy.events import GroupOffered, Place, RequestArrived, TaskFinished
from lemix_hpc.policy.latency import Affine, LatencyModel
from lemix_hpc.policy.rules import SchedulerConfig
from lemix_hpc.policy.scheduler import Scheduler

TPOT = 0.05


@given(share=st.floats(0.05, 0.95), seed=st.integers(0, 9))
def test_both_get_their_share_while_both_want_time(share: float, seed: int) -> None:
    """A pass of batch requests begins whenever they are owed time, and training has the rest."""
    owed = served = trained = 0.0
    for piece in range(5000):
        seconds = 1e-3 * (1 + (piece * 7 + seed) % 20)
        if owed > 0.0:
            served += seconds
            owed = batch_debt_after(owed, share, 0.0, seconds, TPOT)
        else:
            trained += seconds
            owed = batch_debt_after(owed, share, seconds, 0.0, TPOT)
    assert served / (served + trained) == pytest.approx(share, abs=0.01)


def test_with_a_share_of_nothing_they_wait_and_with_one_of_all_they_go_first() -> None:
    assert batch_debt_after(0.0, 0.0, 3.0, 0.0, TPOT) == 0.0
    owed = batch_debt_after(0.0, 1.0, 0.1, 0.0, TPOT)
    assert owed > 0.0 and batch_debt_after(owed, 1.0, 0.0, 5.0, TPOT) == owed
    assert batch_debt_after(owed, 0.5, 1e3, 0.0, TPOT) == LARGEST_CLAIM * TPOT, (
        "what nobody asked for is not owed for ever"
    )


def test_they_run_alone_where_a_batch_of_others_still_finds_its_place() -> None:
    assert may_fill(False, 0.01, TPOT, 0, 0, 1, stages=2) and takes_prompts(False, 0.01)
    assert not may_fill(False, 0.0, TPOT, 0, 0, 0, stages=2) and not takes_prompts(False, 0.0)
    assert may_fill(True, -0.1, TPOT, 0, 1, 1, stages=2) and takes_prompts(True, -0.1), "nothing trains"
    assert not may_fill(False, 0.01, TPOT, 0, 1, 1, stages=2) and may_fill(False, 0.2, TPOT, 0, 1, 1, stages=2)
    assert not may_fill(True, 0.1, TPOT, 1, 0, 0, stages=2) and not may_fill(True, 0.1, TPOT, 0, 0, 2, stages=2)


def test_a_window_that_is_nearly_over_promotes() -> None:
    key = promotion(100.0, 1000.0)
    assert 100.0 < key < 1100.0
    assert waits_as_batch(True, key, key - 1.0) and not waits_as_batch(True, key, key)
    assert not waits_as_batch(False, key, 0.0)


def scheduler(**changes: object) -> Scheduler:
    stage = Affine(1.0, 0.0, 0.0)
    config = {"nodes": 2, "window": 1000.0, "placement": "least-completion", **changes}
    return Scheduler(SchedulerConfig(**config), LatencyModel((stage, stage), (stage, stage)))  # type: ignore[arg-type]


def test_they_are_spread_by_their_work_and_no_forecast_waits_for_them() -> None:
    given = scheduler()
    places = [given.handle(RequestArrived(0.0, task, 8, 0, patient=True))[0] for task in range(4)]
    assert [place.node for place in places if isinstance(place, Place)] == [0, 1, 0, 1]
    assert all(isinstance(place, Place) and place.key == promotion(0.0, 1000.0) for place in places)
    assert given.handle(RequestArrived(1.0, 4, 8, 0)) == scheduler().handle(RequestArrived(1.0, 4, 8, 0))
    (micro_batch,) = given.handle(GroupOffered(1.0, 0, (5,), 1, (8,)))
    assert isinstance(micro_batch, Place) and micro_batch.eligible == 1.0, "nor is training held for them"
    given.handle(TaskFinished(2.0, 1, 1))
    given.handle(TaskFinished(2.0, 1, 3))
    (place,) = given.handle(RequestArrived(3.0, 6, 8, 0, patient=True))
    assert isinstance(place, Place) and place.node == 1
    assert math.isfinite(place.response)
