"""What is saved of training and taken up again, to the last bit: in every mode, and on another number of stages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from lemix_hpc.checkpoints.stage_state import FIRST_MOMENT, SavedState, StageState
from lemix_hpc.config.errors import UserError
from lemix_hpc.engines.torch import saved_state
from tests.checkpoints.states import saved
from tests.engines.torch.conftest import MakePipeline, Pipeline, TinyRecipe, finish
from tests.engines.torch.test_training import OPTIMIZER, texts, train

MODES: list[tuple[Literal["float32", "bfloat16"], int, bool]] = [
    ("float32", 0, False),
    ("float32", 1, False),
    ("float32", 1, True),
    ("bfloat16", 0, False),
    ("bfloat16", 1, False),
    ("bfloat16", 1, True),
]
STEPS, SAVED_AFTER = 8, 5


def snapshot(node: Pipeline, between: Callable[[], None] | None = None) -> list[StageState]:
    return [finish(stage.snapshot(), between) for stage in node.stages]


def save(node: Pipeline, directory: Path) -> SavedState:
    """Write what a node has learned, as a run does."""
    return saved(snapshot(node), directory)


def restore(node: Pipeline, state: SavedState) -> Pipeline:
    for stage in node.stages:
        stage.restore(state)
    return node


def state_of(node: Pipeline) -> dict[str, bytes]:
    return {name: values.tobytes() for state in snapshot(node) for name, values in state.tensors.items()}


@pytest.mark.parametrize(("dtype", "zero_stage", "offload"), MODES)
@pytest.mark.parametrize("family", ["llama-tied", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_training_goes_on_as_if_it_had_never_stopped(
    family: str,
    dtype: Literal["float32", "bfloat16"],
    zero_stage: int,
    offload: bool,
    tiny_recipe: TinyRecipe,
    pipeline: MakePipeline,
    tmp_path: Path,
) -> None:
    """In the middle of the learning rate's schedule, and with a step that was skipped."""
    mode: dict[str, Any] = {"zero_stage": zero_stage, "offload_optimizer": offload, "warmup_steps": 3}
    mode |= {"learning_rate_schedule": "cosine", "decay_steps": 9, "no_weight_decay": ["norms", "biases", "embeddings"]}
    recipe = tiny_recipe(family, 2, dtype=dtype, release="sync", **OPTIMIZER | mode)
    data = texts(STEPS)
    node = pipeline(recipe)
    train(node, data[:SAVED_AFTER])
    for stage in node.stages:  # a skipped step is none for the schedule and the moments
        assert list(stage._stepped_by().prepare([], float("nan"))) == []
        stage._stepped_by().publish()
    state = save(node, tmp_path / "saved")
    resumed = restore(pipeline(recipe), state)
    assert resumed.weights() == node.weights(), "what is served"
    assert train(resumed, data[SAVED_AFTER:]) == train(node, data[SAVED_AFTER:])
    assert resumed.weights() == node.weights()
    assert state_of(resumed) == state_of(node)
    assert [state.updates for state in snapshot(resumed)] == [STEPS, STEPS]
    assert [state.schedule for state in snapshot(resumed)] == [STEPS, STEPS]


@pytest.mark.parametrize(
    ("family", "before", "after"), [("llama-tied", 2, 1), ("llama-tied", 1, 3), ("gpt2-untied", 3, 2)]
)
def test_a_state_may_be_taken_up_by_other_stages(
    family: str, before: int, after: int, tiny_recipe: TinyRecipe, pipeline: MakePipeline, tmp_path: Path
) -> None:
    optimizer = OPTIMIZER | {"gradient_clipping": None}  # the norm's last bits depend on how it is summed
    data = texts(STEPS)
    node = pipeline(tiny_recipe(family, before, release="sync", **optimizer))
    train(node, data[:SAVED_AFTER])
    there = restore(pipeline(tiny_recipe(family, after, release="sync", **optimizer)), save(node, tmp_path / "saved"))
    assert state_of(there) == state_of(node)
    back = restore(pipeline(tiny_recipe(family, before, release="sync", **optimizer)), save(there, tmp_path / "again"))
    assert train(back, data[SAVED_AFTER:]) == train(node, data[SAVED_AFTER:])
    assert back.weights() == node.weights()
    train(there, data[SAVED_AFTER:])
    mine, theirs = state_of(there), state_of(node)
    assert mine.keys() == theirs.keys()
    for name, values in mine.items():
        distance = np.frombuffer(values, np.float32) - np.frombuffer(theirs[name], np.float32)
        assert np.abs(distance).max() < 1e-5, name


def test_a_snapshot_rests_in_between_and_changes_nothing(
    tiny_recipe: TinyRecipe, pipeline: MakePipeline, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(saved_state._PIECE, "cpu", 1000)
    recipe = tiny_recipe("llama-tied", 2, release="sync", **OPTIMIZER)
    node = pipeline(recipe)
    train(node, texts(3))
    before, stops = node.weights(), 0

    def serve() -> None:
        nonlocal stops
        stops += 1
        if stops % 20 == 0:
            node.score(*prompts)

    states = snapshot(node, between=serve)
    assert stops > 3 * sum(stage.parameters for stage in node.stages) / 1000 * 0.8
    assert node.weights() == before
    names = [name for state in states for name in state.tensors]
    assert len(names) == len(set(names)), "a tied embedding is saved once"
    places = [values.ctypes.data for state in states for values in state.tensors.values()]
    train(node, texts(1))
    again = snapshot(node)
    assert [values.ctypes.data for state in again for values in state.tensors.values()] == places


def test_before_the_first_step_the_moments_are_zero(tiny_recipe: TinyRecipe, pipeline: MakePipeline) -> None:
    [state] = snapshot(pipeline(tiny_recipe("llama", 1, **OPTIMIZER)))
    assert (state.updates, state.schedule, state.dtype) == (0, 0, "float32")
    moments = [values for name, values in state.tensors.items() if name.startswith(FIRST_MOMENT)]
    assert moments
    assert not any(np.any(values) for values in moments)


def test_a_state_of_another_model_is_refused(tiny_recipe: TinyRecipe, pipeline: MakePipeline, tmp_path: Path) -> None:
    state = save(pipeline(tiny_recipe("llama", 1, **OPTIMIZER)), tmp_path / "saved")
    with pytest.raises(UserError, match="give a checkpoint of the same model"):
        restore(pipeline(tiny_recipe("gpt2", 1, **OPTIMIZER)), state)


def test_a_stage_that_does_not_train_has_nothing_to_save(tiny_recipe: TinyRecipe, pipeline: MakePipeline) -> None:
    with pytest.raises(ValueError, match="without training"):
        snapshot(pipeline(tiny_recipe("llama", 1)))
