import math
from time import monotonic

import pytest

from lemix_hpc.engines.emulated import EmulatedStage
from lemix_hpc.engines.meter import finish
from lemix_hpc.engines.protocol import GroupGradient, MicroBatch, Payload, SequenceResult, ServeBatch, ServeSequence
from lemix_hpc.policy.latency import Affine, LatencyModel
from lemix_hpc.policy.latency_forms import Together

HIDDEN = Payload((), "uint8", memoryview(b""))
# Binary fractions, so that sums of times are exact: forward 2 + l / 8 on the first stage, 1 on the second.
LATENCY = LatencyModel(
    forward=(Affine(2.0, 0.125, 0.0, 0.25), Affine(1.0, 0.0, 0.0)),
    backward=(Affine(4.0, 0.25, 0.0), Affine(8.0, 0.0, 0.0)),
)
LAYERS = 4


class Time:
    """A clock that only sleeping and `pass_by` move."""

    def __init__(self) -> None:
        self.now = 100.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds

    pass_by = sleep


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def first(time: Time) -> EmulatedStage:
    return EmulatedStage(LATENCY, 0, LAYERS, clock=time.clock, sleep=time.sleep)


@pytest.fixture
def last(time: Time) -> EmulatedStage:
    return EmulatedStage(LATENCY, 1, LAYERS, clock=time.clock, sleep=time.sleep)


def micro_batch(number: int = 0, rows: int = 2, length: int = 8) -> MicroBatch:
    return MicroBatch(number, 0, number, 1, rows, length, b"", b"")


def batch(*sequences: ServeSequence) -> ServeBatch:
    return ServeBatch(0, list(sequences))


def test_a_serving_pass_takes_the_predicted_time_at_once(first: EmulatedStage, time: Time) -> None:
    work = first.serve(batch(ServeSequence(1, 8, 0, False, []), ServeSequence(2, 1, 40, True, [])), None)
    assert list(work) == []  # nothing comes in between
    assert time.now == 100 + 2 + 9 / 8 + 40 / 4


def test_a_training_pass_takes_the_predicted_time_and_can_rest_between_layers(first: EmulatedStage, time: Time) -> None:
    ends = [time.now for _ in first.forward(micro_batch(), None)]
    assert ends == [101.0, 102.0, 103.0]
    assert time.now == 100 + 2 + 16 / 8
    assert [time.now for _ in first.backward(0, HIDDEN)] == [106.0, 108.0, 110.0]
    assert time.now == 104 + 4 + 16 / 4


def test_a_backward_that_computes_again_takes_the_forward_longer_and_rests_twice_as_often(time: Time) -> None:
    latency = LatencyModel(LATENCY.forward, (Together(LATENCY.backward[0], LATENCY.forward[0]), LATENCY.backward[1]))
    stage = EmulatedStage(latency, 0, LAYERS, recomputes=True, clock=time.clock, sleep=time.sleep)
    assert len(list(stage.forward(micro_batch(), None))) == LAYERS - 1
    start = time.now
    assert len(list(stage.backward(0, HIDDEN))) == 2 * LAYERS - 1
    assert time.now - start == 4 + 16 / 4 + 2 + 16 / 8


def test_the_device_is_not_starved_by_the_loop_between_two_layers(first: EmulatedStage, time: Time) -> None:
    """As with kernels that are queued ahead: the next layer has run meanwhile."""
    for _ in first.forward(micro_batch(), None):
        time.pass_by(0.75)
    assert time.now == 104.0


def test_a_loop_that_comes_late_is_caught_up_with(first: EmulatedStage, time: Time) -> None:
    work = first.forward(micro_batch(), None)
    next(work)
    time.pass_by(1.5)
    next(work)
    assert time.now == 102.5  # the second layer ended at 102
    finish(work)
    assert time.now == 104.0


def test_a_pass_that_rested_for_serving_goes_on_when_it_is_called_again(first: EmulatedStage, time: Time) -> None:
    work = first.forward(micro_batch(), None)
    next(work)
    finish(first.serve(batch(ServeSequence(1, 8, 0, False, [])), None))
    assert time.now == 104.0
    time.pass_by(0.5)
    finish(work)
    assert time.now == 104.5 + 3


def test_idle_time_is_not_caught_up_with(first: EmulatedStage, time: Time) -> None:
    finish(first.forward(micro_batch(0), None))
    time.pass_by(10.0)
    finish(first.forward(micro_batch(1), None))
    assert time.now == 118.0


def test_results_have_the_form_of_a_computing_engine(first: EmulatedStage, last: EmulatedStage) -> None:
    served = batch(ServeSequence(1, 8, 0, False, []), ServeSequence(2, 8, 0, True, []))
    assert finish(first.serve(served, None)).nbytes == 0
    assert finish(last.serve(served, HIDDEN)) == [SequenceResult(1, 0.0, 0, None), SequenceResult(2, 0.0, 0, -1)]
    assert finish(first.forward(micro_batch(), None)).nbytes == 0
    loss = finish(last.forward(micro_batch(), HIDDEN))
    assert isinstance(loss, float) and math.isnan(loss)
    assert finish(last.backward(0, None)).nbytes == 0
    assert finish(first.backward(0, HIDDEN)) is None


def test_there_are_no_weights_and_a_step_takes_no_time(first: EmulatedStage, time: Time) -> None:
    assert first.seal(0, None) == GroupGradient(0.0)
    assert first.prepare(0, 0.0, None) is None
    assert finish(first.publish(0)) is None
    assert first.read_weights() == []
    first.write_weights([])
    assert not first.holds_graph
    assert time.now == 100.0


def test_several_micro_batches_may_be_between_forward_and_backward(first: EmulatedStage, time: Time) -> None:
    finish(first.forward(micro_batch(0, length=8), None))
    finish(first.forward(micro_batch(1, length=16), None))
    before = time.now
    finish(first.backward(0, HIDDEN))
    assert time.now - before == 4 + 16 / 4
    finish(first.backward(1, HIDDEN))
    assert time.now - before == 8 + 16 / 4 + 32 / 4


def test_time_is_really_slept() -> None:
    latency = LatencyModel((Affine(0.02, 0.0, 0.0),), (Affine(0.02, 0.0, 0.0),))
    stage = EmulatedStage(latency, 0, LAYERS)
    start = monotonic()
    finish(stage.forward(micro_batch(), None))
    assert monotonic() - start >= 0.02
