from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.policy.latency import Affine, Shape
from lemix_hpc.policy.latency_forms import Interpolated, Roofline
from lemix_hpc.profiling.coefficients import Links, StageMemory, load_coefficients, save_coefficients
from lemix_hpc.profiling.fitting import fit_points, make_file
from lemix_hpc.profiling.points import Measured, read_points

FORWARD = Roofline(3e-4, 2e-6, 4.0, 1e-9, 1e-8)
BACKWARD = Affine(5e-4, 5e-6, 2e-9)
FACTS: dict[str, Any] = {
    "hardware": "a device",
    "model": "a model",
    "dtype": "float16",
    "layers": 8,
    "provenance": {"source": "made up"},
}


def prefills(batches: tuple[int, ...] = (1, 2, 4, 8), lengths: tuple[int, ...] = (16, 64, 256, 1024)) -> list[Measured]:
    sizes = [Measured(batch, length, 1.0) for batch in batches for length in lengths]
    return [Measured(p.batch, p.length, FORWARD.seconds(p.shape)) for p in sizes]


def decodes() -> list[Measured]:
    sizes = [Measured(batch, 1, 1.0, context) for batch in (1, 8, 32) for context in (64, 512, 2048)]
    return [Measured(p.batch, 1, FORWARD.seconds(p.shape), p.context) for p in sizes]


def backwards() -> list[Measured]:
    return [Measured(p.batch, p.length, BACKWARD.seconds(p.shape), kind="backward") for p in prefills()]


def test_each_kind_of_pass_has_a_fit_of_its_own() -> None:
    fitted = fit_points([*prefills(), *backwards(), *decodes()])
    assert fitted.backward is not None
    assert (fitted.forward.chosen.name, fitted.backward.chosen.name) == ("roofline", "affine-quadratic")
    assert fitted.forward.warnings == fitted.backward.warnings == ()
    for point in [*prefills(), *decodes()]:
        assert fitted.forward.chosen.form.seconds(point.shape) == pytest.approx(point.seconds, rel=1e-3)
    for point in backwards():
        assert fitted.backward.chosen.form.seconds(point.shape) == pytest.approx(point.seconds, rel=1e-6)


def test_the_form_can_be_named() -> None:
    fitted = fit_points(prefills(), model="quadratic")
    assert fitted.backward is None
    assert fitted.forward.chosen.name == "quadratic"
    assert [c.name for c in fitted.forward.candidates] == ["quadratic", "affine-quadratic", "roofline", "interpolated"]


@pytest.mark.parametrize(
    ("points", "model", "message"),
    [
        (
            prefills(),
            "cubic",
            "--model: expected one of quadratic, affine-quadratic, roofline, interpolated, found 'cubic'",
        ),
        (backwards(), None, "there are no forward points; without them a stage has no times"),
        (
            prefills()[:1] * 5,
            None,
            "forward: a fit and its check need points of at least 2 sizes, found 1; measure more sizes",
        ),
        (
            prefills()[:3],
            "affine-quadratic",
            "forward: affine-quadratic needs points of at least 4 sizes, found 3; measure more sizes",
        ),
    ],
)
def test_points_that_cannot_be_fitted(points: list[Measured], model: str | None, message: str) -> None:
    with pytest.raises(UserError) as caught:
        fit_points(points, model=model)
    assert str(caught.value) == message


def test_cross_validation_needs_two_folds() -> None:
    with pytest.raises(UserError, match="--folds: cross-validation needs at least 2 folds, found 1"):
        fit_points(prefills(), folds=1)


def test_forms_with_more_coefficients_than_points_are_left_out() -> None:
    fitted = fit_points(prefills()[:3])
    assert [c.name for c in fitted.forward.candidates] == ["quadratic"]
    assert fitted.forward.warnings[1:] == (
        "forward: affine-quadratic left out; it needs points of at least 4 sizes, found 3",
        "forward: roofline left out; it needs points of at least 5 sizes, found 3",
        "forward: interpolated left out; it needs points of at least 5 sizes, found 3",
    )


@pytest.mark.parametrize(
    ("points", "warning"),
    [
        (prefills(batches=(2,)), "all points have batch 2; predictions for other batch sizes are extrapolated"),
        (prefills(lengths=(64,)), "all points have length 64; predictions for other lengths are extrapolated"),
        (decodes(), "there are only decode steps; prompts are predicted from them, and that is a guess"),
        (
            [Measured(p.batch, p.length, 0.5) for p in prefills()],
            "all times are equal; check the clock they were measured with",
        ),
    ],
)
def test_what_the_points_cannot_tell_is_said(points: list[Measured], warning: str) -> None:
    assert f"forward: {warning}" in fit_points(points).forward.warnings


def test_the_same_points_give_the_same_fit() -> None:
    noisy = [
        Measured(p.batch, p.length, p.seconds * float(factor))
        for p, factor in zip(prefills(), np.random.default_rng(1).uniform(0.9, 1.1, len(prefills())), strict=True)
    ]
    assert fit_points(noisy) == fit_points(noisy)
    assert fit_points(noisy, seed=1) != fit_points(noisy)


def test_a_file_of_stages_is_read_back_with_everything_in_it(tmp_path: Path) -> None:
    stages = [fit_points([*prefills(), *decodes()]), fit_points([*prefills(), *backwards()])]
    file = make_file(
        stages,
        per_layer=False,
        points="points.csv",
        memory=[StageMemory(weights_bytes=100), StageMemory(weights_bytes=200, kv_bytes_per_token=0.5)],
        step_s=[0.1, 0.2],
        links=Links(host_to_device_gb_s=20.0),
        **FACTS,
    )
    path = tmp_path / "file.yaml"
    save_coefficients(file, path)
    loaded = load_coefficients(path)
    assert loaded == file
    assert loaded.stages is not None
    assert [s.memory.weights_bytes for s in loaded.stages if s.memory] == [100, 200]
    assert [s.step_s for s in loaded.stages] == [0.1, 0.2]
    assert [s.residuals.backward is None for s in loaded.stages] == [True, False]
    residuals = loaded.stages[0].residuals.forward
    assert residuals is not None
    expected = stages[0].forward.chosen.residuals
    assert residuals.model_dump() == pytest.approx(expected.model_dump(), rel=1e-5)
    latency = loaded.latency(2)
    shape = Shape.of([100, 200])
    expected_times = [s.forward.chosen.form.seconds(shape) for s in stages]
    assert latency.forward_times(shape) == pytest.approx(expected_times, rel=1e-5)
    assert latency.backward[0].seconds(shape) == pytest.approx(2 * latency.forward[0].seconds(shape))
    assert latency.backward[1].seconds(shape) == pytest.approx(BACKWARD.seconds(shape), rel=1e-5)


def test_a_file_is_valid_where_its_points_are() -> None:
    valid = make_file([fit_points([*prefills(), *decodes()])], per_layer=True, **FACTS).valid
    assert (valid.max_length, valid.batch, valid.length) == (2049, [1, 32], [16, 1024])
    assert (valid.tokens, valid.context) == ([1, 8192], [64, 2048])


def test_times_per_layer_are_of_one_layer() -> None:
    with pytest.raises(ValueError, match="not of 2 stages"):
        make_file([fit_points(prefills())] * 2, per_layer=True, **FACTS)


# Published measurements


@pytest.mark.trial_data
@pytest.mark.parametrize("folds", [5, 10, 1000])
def test_prompts_of_llama_2_7b_on_an_a100(trial_data: Path, folds: int) -> None:
    """16 to 4096 tokens, batch 1 to 16; 1000 folds: each point is left out alone."""
    table = read_points([trial_data / "latency" / "a100-llama2-7b-prefill.csv"])
    fitted = fit_points(table.points, folds=folds).forward
    assert fitted.chosen.name == "interpolated"
    residuals = {c.name: c.residuals for c in fitted.candidates}
    for name in ("interpolated", "roofline"):
        assert residuals[name].median_rel_error <= 0.04
        assert residuals[name].p95_rel_error <= 0.15
        assert residuals[name].max_rel_error <= 0.25
    assert residuals["quadratic"].median_rel_error > 0.5


@pytest.mark.trial_data
def test_prompts_and_decode_steps_of_llama_2_7b_on_an_a100_in_one_form(trial_data: Path) -> None:
    tables = [trial_data / "latency" / f"a100-llama2-7b-{kind}.csv" for kind in ("prefill", "decode")]
    chosen = fit_points(read_points(tables).points).forward.chosen
    assert isinstance(chosen.form, Interpolated)
    assert chosen.residuals.median_rel_error <= 0.02
    assert chosen.residuals.max_rel_error <= 0.10
