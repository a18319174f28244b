import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.policy.latency import Affine, LatencyModel, Shape, StageTime
from lemix_hpc.policy.latency_forms import Interpolated, Quadratic, Roofline, Together

# Times that a clock can tell from none; a product of smaller numbers loses digits that no measurement has.
seconds = st.just(0.0) | st.floats(1e-9, 1e-2)
per_token = st.just(0.0) | st.floats(1e-15, 1e-5)
affine = st.builds(Affine, seconds, per_token, per_token, per_token)
roofline = st.builds(Roofline, seconds, per_token, st.floats(1, 16), per_token, per_token, seconds)


@st.composite
def interpolated(draw: st.DrawFn) -> Interpolated:
    knots = draw(st.lists(st.integers(1, 5000), min_size=1, max_size=6, unique=True))
    curve = draw(st.lists(seconds, min_size=len(knots), max_size=len(knots)))
    return Interpolated(tuple(sorted(knots)), tuple(sorted(curve)), draw(roofline))


alone = st.one_of(st.builds(Quadratic, per_token), affine, roofline, interpolated())
forms = st.one_of(alone, st.builds(Together, alone, alone))
lengths = st.lists(st.integers(1, 3000), min_size=1, max_size=4)


@given(forms, lengths, st.integers(0, 10_000))
def test_no_time_is_negative_and_it_is_the_sum_of_its_terms(form: StageTime, batch: list[int], cached: int) -> None:
    shape = Shape.of(batch, [cached])
    assert min(form.terms(shape)) >= 0
    assert form.seconds(shape) == pytest.approx(sum(form.terms(shape)), rel=1e-12)


@given(forms, lengths, st.integers(0, 10_000), st.data())
def test_a_larger_batch_never_takes_less(form: StageTime, batch: list[int], cached: int, data: st.DataObject) -> None:
    small = form.seconds(Shape.of(batch, [cached]))
    rounding = 1 - 1e-12
    place = data.draw(st.integers(0, len(batch) - 1))
    longer = [length + data.draw(st.integers(1, 3000)) * (place == i) for i, length in enumerate(batch)]
    assert form.seconds(Shape.of(longer, [cached])) >= small * rounding
    assert form.seconds(Shape.of([*batch, 1], [cached])) >= small * rounding
    assert form.seconds(Shape.of(batch, [cached + 1])) >= small * rounding


@given(forms, lengths, st.data())
def test_gains_multiply_the_terms(form: StageTime, batch: list[int], data: st.DataObject) -> None:
    shape = Shape.of(batch, [7])
    terms = form.terms(shape)
    gains = data.draw(st.lists(st.sampled_from([0.5, 1.0, 4.0]), min_size=len(terms), max_size=len(terms)))
    expected = tuple(gain * term for gain, term in zip(gains, terms, strict=True))
    assert form.with_gains(gains).terms(shape) == pytest.approx(expected, rel=1e-9)
    assert form.scaled(3.0).seconds(shape) == pytest.approx(3 * form.seconds(shape), rel=1e-9)


@given(forms, st.integers(1, 3000), st.integers(0, 40))
def test_a_request_takes_its_passes(form: StageTime, prompt: int, output: int) -> None:
    model = LatencyModel((form,), (form,))
    passes = [Shape.of([prompt])] + [Shape.of([1], [prompt + i]) for i in range(output - 1)]
    assert model.request_times(prompt, output)[0] == pytest.approx(sum(map(form.seconds, passes)), rel=1e-9)


@given(alone, alone, lengths, st.lists(st.sampled_from([0.5, 1.0, 4.0]), min_size=5, max_size=5))
def test_two_passes_take_their_sum_and_what_is_learned_of_both_holds_for_each(
    first: StageTime, second: StageTime, batch: list[int], gains: list[float]
) -> None:
    shape, both = Shape.of(batch), Together(first, second)
    assert both.seconds(shape) == pytest.approx(first.seconds(shape) + second.seconds(shape), rel=1e-9)
    learned = both.first_with(gains).seconds(shape) + Together(second, first).first_with(gains).seconds(shape)
    assert both.with_gains(gains).seconds(shape) == pytest.approx(learned, rel=1e-9)
    assert both.with_gains(gains).with_gains([2.0] * 5) == both.with_gains([2.0 * gain for gain in gains])


def test_the_papers_form_counts_squares_alone() -> None:
    assert Quadratic(0.5).seconds(Shape(tokens=6, squares=20, cached=18)) == 10


def test_a_roofline_is_the_longer_of_reading_and_computing_and_the_rest_on_top() -> None:
    sharp = Roofline(a=6.0, b=1.0, p=16.0)
    assert sharp.roof(1) == pytest.approx(6.0)
    assert sharp.roof(60) == pytest.approx(60.0)
    assert Roofline(3.0, 1.0, 2.0).roof(4) == pytest.approx(5.0)
    assert Roofline(3.0, 1.0, 1.0).roof(4) == pytest.approx(7.0)
    assert Roofline(0.0, 0.0, 2.0, c=1.0, d=10.0, e=100.0).seconds(Shape.of([3, 1, 2], [0, 5])) == 14 + 50 + 200


def test_a_curve_goes_straight_between_its_knots_and_like_the_roof_outside() -> None:
    form = Interpolated((10, 20, 40), (1.0, 3.0, 3.0), Roofline(0.0, 1.0, 1.0))
    assert [form.level(tokens) for tokens in (10, 15, 20, 30, 40)] == [1.0, 2.0, 3.0, 3.0, 3.0]
    assert form.level(5) == 0.5  # half of 10 tokens, by the roof
    assert form.level(80) == 6.0


def test_a_curve_without_a_roof_stays_level_outside() -> None:
    form = Interpolated((10, 20), (1.0, 3.0), Roofline(0.0, 0.0, 1.0))
    assert (form.level(1), form.level(100)) == (1.0, 3.0)
