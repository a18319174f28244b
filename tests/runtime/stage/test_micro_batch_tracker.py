import math

import pytest

from lemix_hpc.engines.protocol import MicroBatch
from lemix_hpc.runtime.stage.micro_batch_tracker import MicroBatchTracker


def batch(number: int, size: int = 4) -> MicroBatch:
    return MicroBatch(number, number // size, number % size, size, 1, 8, b"", b"")


def forward(groups: MicroBatchTracker, micro_batch: MicroBatch) -> None:
    groups.started(micro_batch)
    groups.forward_done(micro_batch)


@pytest.mark.parametrize(("stage", "allowed"), [(0, 3), (1, 2), (2, 1)])
def test_one_forward_one_backward_keeps_as_many_in_flight_as_stages_are_left(stage: int, allowed: int) -> None:
    groups = MicroBatchTracker(stage, 3, gpipe=False, flush=False)
    started = 0
    while groups.may_forward(batch(started, 8)):
        forward(groups, batch(started, 8))
        started += 1
    assert started == allowed


def test_gpipe_runs_all_forwards_before_the_first_backward() -> None:
    groups = MicroBatchTracker(0, 2, gpipe=True, flush=True)
    for number in range(4):
        assert groups.may_forward(batch(number))
        assert groups.backward_since == math.inf
        forward(groups, batch(number))
        groups.gradient_arrived(number, None, now=2.0 + number)
    assert not groups.may_forward(batch(4))
    assert groups.backward_since == 2.0, "the first gradient's arrival, though it had to wait"


def test_a_group_is_complete_with_its_last_backward() -> None:
    groups = MicroBatchTracker(1, 2, gpipe=False, flush=False)
    assert not groups.complete(0)
    for number in range(4):
        forward(groups, batch(number))
        groups.gradient_arrived(number, None, now=1.0 * number)
        assert groups.backward_since == number
        groups.backward_done(groups.take_gradient().micro_batch)
        assert groups.complete(0) == (number == 3)
    groups.close(0)
    assert groups.idle
    assert not groups.complete(0)


@pytest.mark.parametrize("flush", [True, False])
def test_with_a_flush_a_group_waits_until_the_one_before_is_closed(flush: bool) -> None:
    groups = MicroBatchTracker(0, 2, gpipe=False, flush=flush)
    forward(groups, batch(0, 1))
    groups.gradient_arrived(0, None, now=0.0)
    groups.backward_done(groups.take_gradient().micro_batch)
    assert groups.complete(0)
    assert groups.may_forward(batch(1, 1)) is not flush, "the stage behind may not have sealed its part yet"
    groups.close(0)
    assert groups.may_forward(batch(1, 1))
