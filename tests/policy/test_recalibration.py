"""Gains against known stage times; then the whole correction, alone and in the scheduler."""

import random
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.policy.events import (
    BatchMeasured,
    PassKind,
    PassMeasured,
    Place,
    RequestArrived,
    StageFinished,
    TaskFinished,
)
from lemix_hpc.policy.latency import Affine, LatencyModel, Shape, StageTime
from lemix_hpc.policy.latency_forms import Interpolated, Roofline
from lemix_hpc.policy.lessons import LARGEST_GAIN, LARGEST_STEP
from lemix_hpc.policy.memory import Learned
from lemix_hpc.policy.recalibration import KINDS, Measured, Recalibrated
from lemix_hpc.policy.rules import SchedulerConfig
from lemix_hpc.policy.scheduler import Scheduler

# Llama-2-7B on half an A100 node: each term is the largest one somewhere between 1 and 4096 tokens.
TRUE = Affine(3.1e-3, 2.7e-5, 3.8e-9, 2.5e-8)
FORMS: tuple[StageTime, ...] = (
    TRUE,
    Roofline(3e-3, 3e-5, 4.0, 4e-9, 2.5e-8, 1e-4),
    Interpolated((64, 256, 1024), (3e-3, 8e-3, 0.03), Roofline(3e-3, 3e-5, 4.0, 4e-9, 2.5e-8)),
)
PROMPT = Shape.of([200])
seeds = st.integers(0, 2**32)


def shapes(seed: int, count: int) -> list[Shape]:
    """Prompts of a chat trace, alone or in batches, and decode passes."""
    draw = random.Random(seed)
    lengths = [
        [int(min(4096, max(8, draw.lognormvariate(5, 1)))) for _ in range(draw.randint(1, 3))] for _ in range(count)
    ]
    decodes = [([1], [draw.randint(20, 4000)]) for _ in range(count)]
    return [Shape.of(ls) if draw.random() < 0.7 else Shape.of(*d) for ls, d in zip(lengths, decodes, strict=True)]


def passes(form: StageTime, seed: int, count: int, noise: float, stage: int = 0) -> list[PassMeasured]:
    """Passes whose times are off by a factor within 1 +- `noise`."""
    draw = random.Random(seed)
    return [
        PassMeasured(float(i), 0, stage, "serve", shape, form.seconds(shape) * draw.uniform(1 - noise, 1 + noise))
        for i, shape in enumerate(shapes(seed, count))
    ]


class Taught:
    """A form on all stages, and the coefficients that the scheduler would forecast with after these passes."""

    def __init__(self, form: StageTime, events: Iterable[PassMeasured], stages: int = 1) -> None:
        self.form = form
        self.recalibrated = Recalibrated(LatencyModel((form,) * stages, (form,) * stages))
        self.rows = np.zeros((len(KINDS), stages, 5))
        for event in events:
            self.recalibrated.measured(Measured(event), self.rows)

    @property
    def learned(self) -> tuple[Learned, ...]:
        return self.recalibrated.learned

    def seconds(self, shape: Shape, kind: PassKind = "serve", stage: int = 0) -> float:
        """A pass as compiled code has it, see `latency_tables`."""
        row: list[float] = self.rows[KINDS[kind], stage].tolist()
        constant, gain, square, cached, prefill = row
        tokens = constant + gain * self.form.level(shape.tokens)
        return tokens + square * shape.squares + cached * shape.cached + prefill * shape.prefills


def predicted(taught: Taught, prompt: int) -> float:
    return taught.seconds(Shape.of([prompt]))


# What it comes to


@given(st.floats(1 / 5, 5), seeds, st.sampled_from(FORMS))
def test_comes_to_the_true_factor_from_any_start(wrong: float, seed: int, form: StageTime) -> None:
    recalibrated = Taught(form.scaled(wrong), passes(form, seed, 200, noise=0.2))
    for length in (16, 64, 256, 1024):
        assert predicted(recalibrated, length) == pytest.approx(form.seconds(Shape.of([length])), rel=0.2)


@given(seeds)
def test_a_file_without_error_stays_as_it_is(seed: int) -> None:
    recalibrated = Taught(TRUE, passes(TRUE, seed, 100, noise=0.0))
    assert recalibrated.learned[0].gains == pytest.approx((1.0,) * 4, abs=1e-9)


@given(st.tuples(*[st.sampled_from([1 / 3, 3.0])] * 4), seeds)
def test_comes_near_even_when_each_coefficient_is_wrong_in_its_own_way(wrong: tuple[float, ...], seed: int) -> None:
    recalibrated = Taught(TRUE.with_gains(wrong), passes(TRUE, seed, 200, noise=0.1))
    for length in (32, 128, 512):
        assert predicted(recalibrated, length) == pytest.approx(TRUE.seconds(Shape.of([length])), rel=0.35)


def test_terms_that_were_not_seen_move_with_those_that_were() -> None:
    short = [
        PassMeasured(0.0, 0, 0, "serve", Shape.of([length]), 3 * TRUE.seconds(Shape.of([length]))) for length in (8, 64)
    ]
    recalibrated = Taught(TRUE, short * 50)
    assert predicted(recalibrated, 4096) == pytest.approx(3 * TRUE.seconds(Shape.of([4096])), rel=0.15)


def test_follows_a_machine_that_becomes_slower() -> None:
    events = passes(TRUE, 1, 200, noise=0.1) + passes(TRUE.scaled(2), 2, 300, noise=0.1)
    assert predicted(Taught(TRUE, events), 200) == pytest.approx(2 * TRUE.seconds(PROMPT), rel=0.1)


# What it never does


any_passes = st.lists(st.floats(0, 1e6), max_size=60)


@given(any_passes, seeds, st.sampled_from(FORMS))
def test_steps_and_gains_are_bounded_whatever_is_measured(times: list[float], seed: int, form: StageTime) -> None:
    recalibrated, before = Recalibrated(LatencyModel((form,), (form,))), (1.0,) * form.count
    for shape, seconds in zip(shapes(seed, len(times)), times, strict=True):
        recalibrated.measured(Measured(PassMeasured(0.0, 0, 0, "serve", shape, seconds)), None)
        (learned,) = recalibrated.learned
        for old, new in zip(before, learned.gains, strict=True):
            assert 1 / LARGEST_GAIN <= new <= LARGEST_GAIN
            assert old / LARGEST_STEP * (1 - 1e-12) <= new <= old * LARGEST_STEP * (1 + 1e-12)
        before = learned.gains


@given(any_passes, seeds, st.integers(1, 4))
def test_a_batch_teaches_all_stages_what_their_passes_would(times: list[float], seed: int, stages: int) -> None:
    forms = [FORMS[stage % len(FORMS)] for stage in range(stages)]
    model = LatencyModel(tuple(forms), tuple(forms))
    one, other = Recalibrated(model), Recalibrated(model)
    for number, (shape, seconds) in enumerate(zip(shapes(seed, len(times)), times, strict=True)):
        took = tuple(seconds * (1 + stage) for stage in range(stages))
        expected = one.measured(Measured(BatchMeasured(float(number), 0, shape, took)), None)
        assert expected.tolist() == [
            other.measured(Measured(PassMeasured(float(number), 0, stage, "serve", shape, took[stage])), None)[0]
            for stage in range(stages)
        ]
    assert one.memory == other.memory


@given(st.lists(st.floats(0, 10), min_size=1, max_size=60), seeds, st.sampled_from(FORMS))
def test_predictions_stay_positive_and_grow_with_the_length(times: list[float], seed: int, form: StageTime) -> None:
    measured = zip(shapes(seed, len(times)), times, strict=True)
    recalibrated = Taught(form, (PassMeasured(0.0, 0, 0, "serve", shape, seconds) for shape, seconds in measured))
    series = [predicted(recalibrated, length) for length in (1, 2, 8, 63, 64, 65, 500, 1024, 1025, 8000)]
    assert series[0] > 0
    assert series == sorted(series)
    decodes = [recalibrated.seconds(Shape.of([1], [cached])) for cached in (8, 9, 1000)]
    assert decodes == sorted(decodes)


@given(seeds, st.floats(10, 1e4), st.integers(0, 199))
def test_pauses_of_the_machine_move_predictions_little(seed: int, pause: float, when: int) -> None:
    events = passes(TRUE, seed, 200, noise=0.1)
    late = events[when]
    events[when] = PassMeasured(late.time, 0, 0, "serve", late.shape, late.seconds * pause)
    quiet, disturbed = Taught(TRUE, passes(TRUE, seed, 200, noise=0.1)), Taught(TRUE, events)
    assert predicted(disturbed, 200) == pytest.approx(predicted(quiet, 200), rel=0.06)


def test_a_pass_that_the_file_gives_no_time_teaches_nothing() -> None:
    assert Taught(Affine(0, 0, 0), passes(TRUE, 1, 10, noise=0.0)).learned == ()


# Stages and kinds


@given(seeds, st.randoms(use_true_random=False))
def test_stages_learn_apart_in_whatever_order_they_report(seed: int, order: random.Random) -> None:
    queues = [passes(TRUE.scaled(stage + 1), seed + stage, 30, noise=0.1, stage=stage) for stage in range(3)]
    in_turn = Taught(TRUE, [event for queue in queues for event in queue], stages=3)
    mixed = []
    while any(queues):
        queue = order.choice([queue for queue in queues if queue])
        mixed.append(queue.pop(0))
    assert Taught(TRUE, mixed, stages=3).learned == in_turn.learned
    assert [lesson.stage for lesson in in_turn.learned] == [0, 1, 2]


def test_serving_training_forwards_and_backwards_learn_apart() -> None:
    slower: dict[PassKind, float] = {"serve": 1.0, "forward": 2.0, "backward": 3.0}
    events = [
        PassMeasured(0.0, 0, 0, kind, PROMPT, factor * TRUE.seconds(PROMPT)) for kind, factor in slower.items()
    ] * 60
    recalibrated = Taught(TRUE, events)
    once = TRUE.seconds(PROMPT)
    assert predicted(recalibrated, 200) == pytest.approx(once, rel=0.01)
    assert recalibrated.seconds(PROMPT, "forward") == pytest.approx(2 * once, rel=0.01)
    assert recalibrated.seconds(PROMPT, "backward") == pytest.approx(3 * once, rel=0.01)
    ratios = {lesson.kind: lesson.ratio for lesson in recalibrated.learned}
    assert ratios == pytest.approx(slower)


def test_says_how_far_predictions_were_off_before_and_after() -> None:
    lesson = Taught(TRUE.scaled(1.8), passes(TRUE, 3, 300, noise=0.05)).learned[0]
    assert lesson.passes == 300
    assert lesson.ratio == pytest.approx(1 / 1.8, rel=0.02)
    assert lesson.error_before == pytest.approx(0.8, rel=0.05)
    assert lesson.error_after < 0.05


# In the scheduler


def response_after(events: Iterable[PassMeasured], *, recalibrate: bool) -> tuple[float, Scheduler]:
    wrong = TRUE.scaled(3)
    scheduler = Scheduler(SchedulerConfig(1, recalibrate=recalibrate), LatencyModel((wrong,) * 2, (wrong,) * 2))
    for event in events:
        assert scheduler.handle(event) == []
    (place,) = scheduler.handle(RequestArrived(1e3, 7, 200, 0))
    assert isinstance(place, Place)
    return place.response, scheduler


def test_new_forecasts_use_what_was_learned() -> None:
    events = passes(TRUE, 1, 100, noise=0.1) + passes(TRUE, 1, 100, noise=0.1, stage=1)
    response, scheduler = response_after(events, recalibrate=True)
    assert response == pytest.approx(2 * TRUE.seconds(PROMPT), rel=0.1)
    assert {(drift.stage, drift.kind, drift.until_s) for drift in scheduler.drifts} == {
        (0, "serve", None),
        (1, "serve", None),
    }


def test_without_recalibration_forecasts_keep_to_the_file_and_the_alarm_is_raised_all_the_same() -> None:
    events = passes(TRUE, 1, 100, noise=0.1) + passes(TRUE, 1, 100, noise=0.1, stage=1)
    response, scheduler = response_after(events, recalibrate=False)
    assert response == pytest.approx(2 * TRUE.scaled(3).seconds(PROMPT))
    assert len(scheduler.drifts) == 2
    assert scheduler.learned[0].error_after < 0.15, "what it would have been is known too"


# What a response takes besides its stages' work

ALONE = 2 * TRUE.seconds(PROMPT)
BESIDES = 0.01


def responses(count: int, besides: float, *, recalibrate: bool = True, known: float = 0.0) -> list[float]:
    """What is predicted of requests that come to an idle node one after the other, and take `besides` more than their work."""
    config = SchedulerConfig(1, recalibrate=recalibrate, overhead=known)
    scheduler = Scheduler(config, LatencyModel((TRUE,) * 2, (TRUE,) * 2))
    predicted = []
    for number in range(count):
        now, work = 10.0 * number, ALONE / 2
        (place,) = scheduler.handle(RequestArrived(now, number, 200, 0))
        assert isinstance(place, Place)
        predicted.append(place.response)
        for stage, start in enumerate((now + besides / 2, now + besides + work)):
            scheduler.handle(StageFinished(start + work, 0, stage, number, start, start + work))
        scheduler.handle(TaskFinished(now + besides + 2 * work, 0, number, 0))
    return predicted


def test_forecasts_start_from_the_overhead_that_is_known() -> None:
    assert responses(1, BESIDES, known=BESIDES) == [pytest.approx(ALONE + BESIDES)]
    assert responses(1, BESIDES) == [pytest.approx(ALONE)]


def test_forecasts_follow_the_overhead() -> None:
    *_, lower = responses(100, BESIDES, known=3 * BESIDES)
    *_, higher = responses(100, BESIDES, known=BESIDES / 3)
    assert lower - ALONE == pytest.approx(BESIDES, rel=0.06)
    assert higher - ALONE == pytest.approx(BESIDES, rel=0.06)


def test_without_recalibration_forecasts_know_no_overhead() -> None:
    assert responses(50, BESIDES, recalibrate=False, known=BESIDES) == [pytest.approx(ALONE)] * 50
