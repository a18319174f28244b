from pathlib import Path
from typing import Any

import pytest

from lemix_hpc.policy.drift import DEFAULT_LIMIT
from lemix_hpc.policy.latency import Affine, Shape, StageTime
from lemix_hpc.policy.latency_forms import Interpolated, Roofline
from lemix_hpc.policy.memory import Learned
from lemix_hpc.profiling.blocks import block
from lemix_hpc.profiling.coefficients import CoefficientFile, load_coefficients, save_coefficients
from lemix_hpc.profiling.learned import drift_limit, learned_file

AFFINE = Affine(1.0, 0.5, 0.25, 0.125)
CURVE = Interpolated((8, 64), (1.0, 2.0), Roofline(1.0, 0.03, 2.0, 1e-5, 1e-4, 1e-2))
RESIDUALS = {"points": 9, "folds": 3, "median_rel_error": 0.01, "p95_rel_error": 0.02}
SHAPES = [Shape.of([8]), Shape.of([100, 20]), Shape.of([1], [50])]


def made(**changes: Any) -> CoefficientFile:
    content = {"schema": 1, "hardware": "a device", "model": "a model", "dtype": "float16", "layers": 7}
    return CoefficientFile.model_validate(content | {"provenance": {"source": "made up"}} | changes)


def lesson(stage: int, kind: Any, *gains: float) -> Learned:
    return Learned(stage, kind, gains, passes=5, ratio=1.0, error_before=0.5, error_after=0.1)


def seconds(form: StageTime) -> list[float]:
    return [form.seconds(shape) for shape in SHAPES]


def test_what_was_learned_goes_into_the_stages_of_the_new_file() -> None:
    file = made(per_layer={"forward": block(AFFINE)}, valid={"max_length": 99})
    learned = [lesson(0, "serve", 2, 3, 4, 5), lesson(0, "forward", 9, 9, 9, 9), lesson(1, "backward", 1, 2, 1, 2)]
    new = learned_file(file, 2, learned, {"source": "a run"})
    latency = new.latency(2)
    assert latency.forward == (Affine(8.0, 6.0, 4.0, 2.5), AFFINE.scaled(3))
    # Stage 0 had no backward: still twice the forward, of what the forward takes now.
    assert latency.backward == (Affine(16.0, 12.0, 8.0, 5.0), AFFINE.scaled(6).with_gains((1, 2, 1, 2)))
    assert latency.max_length == 99
    assert new.provenance == {"source": "a run"}


def test_what_was_learned_of_a_backward_that_computes_again_is_of_the_backward_alone_in_the_file() -> None:
    file = made(stages=[{"forward": block(AFFINE), "backward": block(CURVE)}])
    learned = [lesson(0, "backward", 2, 3, 4, 5, 6)]
    assert learned_file(file, 1, learned, {}).latency(1).backward == (CURVE.with_gains((3, 4, 5, 6)),)


def test_what_stages_hold_stays_as_it_was() -> None:
    layer = {"weights_bytes": 3, "optimizer_bytes": 5, "activation_bytes_per_token": 2.5, "kv_bytes_per_token": 1.5}
    file = made(per_layer={"forward": block(AFFINE), "memory": layer})
    assert learned_file(file, 2, [lesson(0, "serve", 2, 3, 4, 5)], {}).memory(2) == file.memory(2)


def test_training_forwards_count_where_nothing_was_served() -> None:
    new = learned_file(made(stages=[{"forward": block(AFFINE)}]), 1, [lesson(0, "forward", 2, 2, 2, 2)], {})
    assert new.latency(1).forward == (AFFINE.scaled(2),)


@pytest.mark.parametrize("form", [AFFINE, CURVE, CURVE.outside])
def test_every_form_is_exported_and_read_back(form: StageTime, tmp_path: Path) -> None:
    given = {"forward": block(form), "backward": block(form.scaled(2)), "memory": {"weights_bytes": 3}, "step_s": 0.5}
    residuals = {"forward": RESIDUALS | {"max_rel_error": 0.03}}
    file = made(stages=[given | {"residuals": residuals}], points="points.csv")
    gains = (2.0, 3.0, 4.0, 5.0)
    new = learned_file(file, 1, [lesson(0, "serve", *gains), lesson(0, "backward", *gains)], {"source": "a run"})
    save_coefficients(new, tmp_path / "new.yaml")
    read = load_coefficients(tmp_path / "new.yaml")
    assert read == new
    assert seconds(read.latency(1).forward[0]) == pytest.approx(seconds(form.with_gains(gains)))
    assert seconds(read.latency(1).backward[0]) == pytest.approx([2 * s for s in seconds(form.with_gains(gains))])
    assert read.stages is not None and read.stages[0].memory is not None
    assert read.stages[0].step_s == 0.5
    assert read.points is None and read.stages[0].residuals.forward is None, "they belong to the old times"


@pytest.mark.parametrize(("largest", "limit"), [(0.02, 0.25), (0.3, 0.3), (4.0, 0.8)])
def test_the_alarm_is_set_to_the_largest_residual_within_bounds(largest: float, limit: float) -> None:
    both = {"forward": RESIDUALS | {"max_rel_error": 0.01}, "backward": RESIDUALS | {"max_rel_error": largest}}
    assert drift_limit(made(per_layer={"forward": block(AFFINE), "residuals": both})) == limit


def test_the_alarm_of_a_file_without_residuals() -> None:
    assert drift_limit(made(per_layer={"forward": block(AFFINE)})) == DEFAULT_LIMIT
