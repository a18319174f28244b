"""What stages of several nodes exchange: gradients and float32 weights as vectors."""

import numpy as np
import pytest
import torch

from lemix_hpc.engines import meter
from lemix_hpc.engines.protocol import Vector, Work
from lemix_hpc.engines.torch import flat_vectors
from lemix_hpc.engines.torch.build import build_stage
from lemix_hpc.engines.torch.gradients import GroupGradients
from lemix_hpc.engines.torch.stage import TorchStage
from tests.engines.torch.conftest import TinyRecipe


def finish(work: Work[None] | None) -> None:
    assert work is not None
    for _ in work:
        pass


def weights(stage: TorchStage) -> list[torch.Tensor]:
    return [stage._wire.tensor(payload).clone() for payload in stage.read_weights()]


def read_master(stage: TorchStage) -> Vector:
    vector = np.empty(stage.parameters, dtype=np.float32)
    finish(stage.read_master(vector))
    return vector


def step(stage: TorchStage, group: int, seed: int) -> None:
    """One optimizer step by a made-up gradient."""
    vector = np.random.default_rng(seed).standard_normal(stage.parameters, dtype=np.float32)
    finish(stage.set_gradient(group, vector))
    norm = meter.finish(stage.seal(group, None)).square_norm ** 0.5
    finish(stage.prepare(group, norm, None))
    finish(stage.publish(group))


@pytest.mark.parametrize("pieces", [7, 1 << 18])
def test_the_gradients_of_groups_are_summed_by_their_shares(monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    monkeypatch.setattr(flat_vectors, "PIECE", pieces)
    parameters = [torch.zeros(5, 3), torch.zeros(4)]
    gradients = GroupGradients(parameters)
    gradients.add(3, parameters[0], torch.ones(5, 3))
    gradients.add(4, parameters[0], torch.full((5, 3), 10.0))
    gradients.add(4, parameters[1], torch.full((4,), 20.0))
    total = np.full(19, np.nan, dtype=np.float32)
    finish(flat_vectors.sum_gradients(gradients, [(3, 0.25), (4, 0.5)], total))
    assert total.tolist() == [5.25] * 15 + [10.0] * 4
    finish(flat_vectors.set_gradient(gradients, parameters, 9, total))
    first, second = gradients.take(9)
    assert first.tolist() == [[5.25] * 3] * 5
    assert second.tolist() == [10.0] * 4
    finish(flat_vectors.sum_gradients(gradients, [], total))
    assert not total.any()


@pytest.mark.parametrize(("dtype", "zero_stage"), [("float32", 0), ("float32", 1), ("bfloat16", 0), ("bfloat16", 1)])
def test_an_average_moves_the_float32_weights_and_keeps_steps_in_between(
    tiny_recipe: TinyRecipe, dtype: str, zero_stage: int
) -> None:
    stage = build_stage(tiny_recipe("llama", dtype=dtype, zero_stage=zero_stage), stage=0, device="cpu")
    step(stage, 0, seed=1)
    snapshot = read_master(stage)
    other = snapshot + np.random.default_rng(2).standard_normal(snapshot.size, dtype=np.float32)
    step(stage, 1, seed=3)
    stepped, served = read_master(stage), weights(stage)
    total = snapshot + other
    mean = total / np.float32(2)
    finish(stage.prepare_average(snapshot, total.copy(), 2))
    assert all(map(torch.equal, weights(stage), served)), "nothing that is served changes before"
    finish(stage.publish_average())
    assert np.allclose(read_master(stage), stepped + (mean - snapshot), atol=1e-6)
    flat = torch.cat([weight.float().view(-1) for weight in weights(stage)]).numpy()
    tolerance = 0.0 if dtype == "float32" else 2**-8
    assert np.allclose(flat, read_master(stage), rtol=tolerance, atol=0.0), "what serves follows the master"
    stage.close()


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_without_steps_in_between_weights_become_the_mean_to_the_last_bit(
    tiny_recipe: TinyRecipe, zero_stage: int
) -> None:
    stage = build_stage(tiny_recipe("llama-tied", zero_stage=zero_stage), stage=0, device="cpu")
    snapshot = read_master(stage)
    total = snapshot + np.random.default_rng(2).standard_normal(snapshot.size, dtype=np.float32)
    mean = total / np.float32(3)
    finish(stage.prepare_average(snapshot, total, 3))
    finish(stage.publish_average())
    assert read_master(stage).tobytes() == mean.tobytes()
    assert torch.cat([weight.view(-1) for weight in weights(stage)]).numpy().tobytes() == mean.tobytes()
    stage.close()


def test_reading_and_averaging_stop_in_between(tiny_recipe: TinyRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat_vectors, "PIECE", 1000)
    stage = build_stage(tiny_recipe("llama", learning_rate=1e-3), stage=0, device="cpu")
    vector = np.empty(stage.parameters, dtype=np.float32)
    stops = sum(1 for _ in stage.read_master(vector))
    assert stops == stage.parameters // 1000
    work = stage.prepare_average(vector, vector * 2, 2)
    assert work is not None
    assert sum(1 for _ in work) == stops
    stage.close()
