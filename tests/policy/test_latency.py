import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.policy.latency import Affine, LatencyModel, Shape

coefficient = st.integers(0, 1000).map(lambda n: n / 64)  # binary fractions: sums are exact
affine = st.builds(Affine, coefficient, coefficient, coefficient, coefficient)
models = st.lists(affine, min_size=1, max_size=3).map(lambda stages: LatencyModel(tuple(stages), tuple(stages)))


def test_a_shape_sums_over_sequences() -> None:
    assert Shape.of([3, 4]) == Shape(tokens=7, squares=25, cached=0, prefills=2)
    assert Shape.of([5, 1], [0, 9]) == Shape(6, 26, 9, 1)


@given(st.lists(st.integers(2, 500), min_size=2, max_size=5))
def test_the_parts_of_a_prompt_have_its_squares_together(parts: list[int]) -> None:
    before = [sum(parts[:number]) for number in range(len(parts))]
    assert sum(Shape.of([part], [there]).squares for part, there in zip(parts, before, strict=True)) == sum(parts) ** 2


def test_seconds_are_affine_in_the_shape() -> None:
    assert Affine(a=1.0, b=0.5, c=0.25, d=2.0).seconds(Shape(tokens=6, squares=20, cached=3)) == 1 + 3 + 5 + 6


@given(affine, st.integers(1, 64), st.lists(st.integers(1, 500), min_size=1, max_size=4))
def test_scaling_scales_every_time(stage: Affine, layers: int, lengths: list[int]) -> None:
    assert stage.scaled(layers).seconds(Shape.of(lengths)) == layers * stage.seconds(Shape.of(lengths))


def test_forward_and_backward_have_times_of_their_own() -> None:
    model = LatencyModel((Affine(1, 0, 0), Affine(2, 0, 0)), (Affine(3, 0, 0), Affine(4, 0, 0)))
    assert model.stages == 2
    assert model.forward_times(Shape.of([8])) == (1, 2)
    assert model.backward_times(Shape.of([8])) == (3, 4)


@given(models, st.integers(1, 2000), st.integers(0, 60))
def test_a_request_takes_its_prompt_and_one_pass_for_each_further_token(
    model: LatencyModel, prompt: int, output: int
) -> None:
    """The first token comes with the prompt; the next pass reads the prompt from the cache, the one after it a token more."""
    passes = [Shape.of([prompt])] + [Shape.of([1], [prompt + i]) for i in range(output - 1)]
    expected = tuple(sum(stage.seconds(shape) for shape in passes) for stage in model.forward)
    assert model.request_times(prompt, output) == pytest.approx(expected)


def test_a_model_covers_the_lengths_it_was_fitted_on() -> None:
    stage = (Affine(1, 0, 0),)
    limited = LatencyModel(stage, stage, max_length=4096)
    assert limited.covers(4096) and not limited.covers(4097)
    assert LatencyModel(stage, stage).covers(10**9)
