from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.config.errors import UserError
from lemix_hpc.policy.latency import Affine, LatencyModel, Shape
from lemix_hpc.policy.latency_forms import Interpolated, Quadratic, Roofline
from lemix_hpc.profiling.blocks import block
from lemix_hpc.profiling.coefficients import (
    CoefficientFile,
    Links,
    Residuals,
    StageMemory,
    Times,
    TimesResiduals,
    load_coefficients,
    save_coefficients,
)
from lemix_hpc.profiling.verify import verify

SHIPPED = Path(__file__).resolve().parents[2] / "profiling"
FORWARD = {"a": 1.0, "b": 0.5, "c": 0.25}
CONTENT: dict[str, Any] = {
    "schema": 1,
    "form": "affine-quadratic",
    "hardware": "a device",
    "model": "a model",
    "dtype": "float16",
    "layers": 7,
    "per_layer": {"forward": FORWARD},
    "provenance": {"source": "made up"},
}


def content(**changes: Any) -> dict[str, Any]:
    """The file above with keys replaced; None leaves a key out."""
    return {key: value for key, value in {**CONTENT, **changes}.items() if value is not None}


def written(path: Path, document: Any) -> Path:
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def curve(**changes: Any) -> dict[str, Any]:
    """An interpolated block."""
    return {"form": "interpolated", "tokens": [8, 16], "seconds": [1.0, 2.0], "a": 1.0, "b": 1.0, "p": 2.0, **changes}


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_coefficients(path)
    return str(caught.value)


# Round trip


numbers = st.floats(0, 1e3)
bytes_ = st.integers(0, 10**12)
rooflines = st.builds(Roofline, numbers, numbers, st.floats(1, 16), numbers, numbers, numbers)


@st.composite
def interpolated(draw: st.DrawFn) -> Interpolated:
    knots = draw(st.lists(st.integers(1, 5000), min_size=1, max_size=4, unique=True))
    curve = draw(st.lists(numbers, min_size=len(knots), max_size=len(knots)))
    return Interpolated(tuple(sorted(knots)), tuple(sorted(curve)), draw(rooflines))


forms = st.one_of(
    st.builds(Quadratic, numbers), st.builds(Affine, numbers, numbers, numbers, numbers), rooflines, interpolated()
)
residuals = st.builds(
    Residuals,
    points=st.integers(1, 99),
    folds=st.integers(1, 99),
    median_rel_error=numbers,
    p95_rel_error=numbers,
    max_rel_error=numbers,
    r2=st.none() | st.floats(-9, 1),
)
times = st.builds(
    Times,
    forward=forms.map(block),
    backward=st.one_of(st.floats(1e-3, 9), forms.map(block)),
    step_s=st.none() | numbers,
    memory=st.none()
    | st.builds(
        StageMemory,
        weights_bytes=bytes_,
        activation_bytes_per_token=st.none() | numbers,
        kv_bytes_per_token=st.none() | numbers,
    ),
    residuals=st.builds(TimesResiduals, forward=st.none() | residuals, backward=st.none() | residuals),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
    st.just("2026-11-21"),
)


@st.composite
def any_file(draw: st.DrawFn) -> CoefficientFile:
    kind = draw(st.sampled_from(["per_layer", "stages"]))
    drawn = draw(times) if kind == "per_layer" else draw(st.lists(times, min_size=1, max_size=4))
    return CoefficientFile.model_validate(
        {
            **content(per_layer=None),
            kind: drawn,
            "model": draw(st.text()),
            "layers": draw(st.integers(1, 200)),
            "valid": draw(st.sampled_from([{}, {"max_length": 4096}, {"batch": [1, 16], "tokens": [16, 4096]}])),
            "links": draw(st.sampled_from([None, Links(host_to_device_gb_s=24.5, message_latency_s=1e-6)])),
            "points": draw(st.sampled_from([None, "points.csv"])),
            "provenance": draw(st.dictionaries(st.text(), st.one_of(scalars, st.lists(scalars)), max_size=3)),
        }
    )


@given(any_file())
def test_a_saved_file_is_read_back_equal(tmp_path_factory: pytest.TempPathFactory, file: CoefficientFile) -> None:
    path = tmp_path_factory.getbasetemp() / "coefficients.yaml"
    save_coefficients(file, path)
    assert load_coefficients(path) == file


# Latency of stages


def stage_times(latency: LatencyModel, shape: Shape) -> list[float]:
    return [stage.seconds(shape) for stage in latency.forward]


def test_per_layer_times_are_spread_over_the_stages_and_the_first_take_the_rest() -> None:
    latency = CoefficientFile.model_validate(content()).latency(3)
    assert latency.forward == (Affine(3, 1.5, 0.75), Affine(2, 1, 0.5), Affine(2, 1, 0.5))
    assert latency.max_length is None


@given(st.integers(1, 7))
def test_a_model_takes_as_long_however_it_is_cut(stages: int) -> None:
    latency = CoefficientFile.model_validate(content()).latency(stages)
    assert latency.stages == stages
    assert sum(stage_times(latency, Shape.of([10]))) == 7 * (1 + 5 + 25)


def test_stages_have_times_of_their_own() -> None:
    other = {"a": 2.0, "b": 0.0, "c": 0.0, "d": 3.0}
    file = CoefficientFile.model_validate(content(per_layer=None, stages=[{"forward": FORWARD}, {"forward": other}]))
    assert file.latency(2).forward == (Affine(1, 0.5, 0.25), Affine(2, 0, 0, 3))


def test_a_backward_takes_twice_the_forward_unless_the_file_says_otherwise() -> None:
    measured = {"a": 9.0, "b": 8.0, "c": 7.0, "d": 0.0}
    cases: list[tuple[dict[str, Any], Affine]] = [
        ({}, Affine(2, 1, 0.5)),
        ({"backward": 3}, Affine(3, 1.5, 0.75)),
        ({"backward": measured}, Affine(9, 8, 7)),
    ]
    for given_, expected in cases:
        file = CoefficientFile.model_validate(content(layers=1, per_layer={"forward": FORWARD, **given_}))
        assert file.latency(1).backward == (expected,)


def test_a_block_has_the_form_of_the_file_unless_it_names_its_own() -> None:
    roof = {"a": 1.0, "b": 0.5, "p": 2.0}
    file = CoefficientFile.model_validate(
        content(
            layers=1,
            form="roofline",
            per_layer={"forward": roof, "backward": {"form": "quadratic", "eta": 3.0}},
        )
    )
    assert file.latency(1).forward == (Roofline(1.0, 0.5, 2.0),)
    assert file.latency(1).backward == (Quadratic(3.0),)


def test_without_any_form_a_block_is_affine() -> None:
    assert CoefficientFile.model_validate(content(layers=1, form=None)).latency(1).forward == (Affine(1, 0.5, 0.25),)


def test_the_range_of_the_fit_goes_into_the_latency_model() -> None:
    assert CoefficientFile.model_validate(content(valid={"max_length": 512})).latency(1).max_length == 512


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"8 stages need at least 8 layers, and a model has 7; set nodes\.stages to at most 7"
    ):
        CoefficientFile.model_validate(content()).latency(8)


def test_times_of_other_stages_are_refused() -> None:
    file = CoefficientFile.model_validate(content(per_layer=None, stages=[{"forward": FORWARD}] * 2))
    with pytest.raises(
        UserError, match=r"measured with 2 stages, not 4; set nodes\.stages: 2 or take a file with `per_layer`"
    ):
        file.latency(4)


# What is wrong with a file


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    assert refusal(path) == f"{path}: cannot be read (No such file or directory); name an existing coefficient file"


def test_a_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe")
    assert refusal(path) == f"{path}: not a text file in UTF-8: invalid start byte at byte 0"


def test_bad_yaml(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("schema: 1\nform: [\n")
    assert refusal(path).startswith(f"{path}:3: not valid YAML: ")


@pytest.mark.parametrize(
    ("document", "found"),
    [
        (content(schema=2), "2"),
        (content(schema=None), "nothing"),
        ([1], "a list"),
        (None, "nothing"),
        ("text", "'text'"),
    ],
)
def test_a_file_of_another_kind(tmp_path: Path, document: Any, found: str) -> None:
    path = written(tmp_path / "other.yaml", document)
    assert refusal(path) == f"{path}: expected a coefficient file with `schema: 1`, found {found}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layer": 3},
            "14: layer: unknown key; did you mean 'layers'? (valid: schema, form, hardware, model, dtype, layers, "
            "per_layer, stages, links, valid, points, provenance)",
        ),
        (
            {"per_layer": {"forward": {**FORWARD, "e": 1}}},
            "12: per_layer.forward.e: unknown key (valid: form, a, b, c, d)",
        ),
        (
            {"per_layer": {"forward": {**FORWARD, "c": -1}}},
            "11: per_layer.forward.c: expected greater than or equal to 0",
        ),
        (
            {"per_layer": {"forward": {**FORWARD, "c": float("nan")}}},
            "11: per_layer.forward.c: expected a finite number",
        ),
        ({"per_layer": {"forward": {"a": 1.0, "c": 1.0}}}, "8: per_layer.forward.b: missing"),
        (
            {"per_layer": {"forward": FORWARD, "backward": 0}},
            "12: per_layer.backward: expected greater than 0, found 0",
        ),
        (
            {"form": "rooflin"},
            "2: form: expected one of 'quadratic', 'affine-quadratic', 'roofline' or 'interpolated', found 'rooflin'; "
            "did you mean 'roofline'?",
        ),
        ({"form": "roofline"}, "8: per_layer.forward.p: missing"),
        (
            {"per_layer": {"forward": {"form": "cubic", "a": 1.0}}},
            "9: per_layer.forward.form: expected one of 'quadratic', 'affine-quadratic', 'roofline' or 'interpolated', "
            "found 'cubic'",
        ),
        ({"per_layer": {"forward": {"form": "roofline", "a": 1.0, "b": 1.0, "p": 0.5}}}, "12: per_layer.forward.p: "),
        (
            {"per_layer": {"forward": curve(tokens=[8])}},
            "8: per_layer.forward: 1 tokens need as many seconds, found 2",
        ),
        ({"per_layer": {"forward": curve(tokens=[8, 8])}}, "8: per_layer.forward: tokens must increase"),
        ({"per_layer": {"forward": curve(seconds=[2.0, 1.0])}}, "8: per_layer.forward: seconds must not fall"),
        ({"valid": {"batch": [4, 1]}}, "14: valid: batch: the smallest comes first, found [4, 1]"),
        ({"layers": 0}, "6: layers: expected greater than 0, found 0"),
        ({"provenance": None}, " provenance: missing"),
        ({"per_layer": None}, " give either `per_layer` or `stages`"),
        ({"stages": [{"forward": FORWARD}]}, " give either `per_layer` or `stages`"),
        ({"per_layer": None, "stages": []}, " give either `per_layer` or `stages`"),
    ],
)
def test_each_mistake_is_told_with_its_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = written(tmp_path / "wrong.yaml", content(**changes))
    assert f"{path}:{message}" in refusal(path)


def test_a_key_given_twice(tmp_path: Path) -> None:
    path = written(tmp_path / "twice.yaml", content())
    path.write_text(path.read_text() + "layers: 8\n")
    assert refusal(path) == f"{path}:14: layers: given twice; the first is on line 6"


# The files that come with the project


SHIPPED_FILES = sorted(SHIPPED.glob("*/*.yaml"))


@pytest.mark.parametrize("path", SHIPPED_FILES, ids=lambda path: str(path.relative_to(SHIPPED)))
def test_shipped_files_are_in_order(path: Path) -> None:
    assert verify(load_coefficients(path), path).startswith("in order")


def test_llama_2_7b_on_an_a100_takes_the_published_times() -> None:
    file = load_coefficients(SHIPPED / "nvidia-a100-80gb" / "llama-2-7b-float16.yaml")
    assert file.layers == 32
    latency = file.latency(2)
    tokens = 1000
    layer = 0.1913e-3 + 1.676e-6 * tokens + 2.367e-10 * tokens**2
    shape = Shape.of([tokens])
    assert latency.forward_times(shape) == pytest.approx((16 * layer, 16 * layer))
    assert latency.backward_times(shape) == pytest.approx((32 * layer, 32 * layer))
    assert latency.covers(4096) and not latency.covers(4097)
