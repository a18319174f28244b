import pytest
import torch

from lemix_hpc.engines.protocol import MicroBatch, ServeBatch, ServeSequence
from lemix_hpc.engines.torch import build
from lemix_hpc.engines.torch.build import build_stage
from tests.engines.torch.conftest import MakePipeline, TinyRecipe, finish

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("cuda_aware", [False, True])
@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
def test_the_same_scores_as_on_the_cpu(
    family: str,
    cuda_aware: bool,
    tiny_recipe: TinyRecipe,
    pipeline: MakePipeline,
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "mpi_sends_device_memory", lambda: cuda_aware)
    recipe = tiny_recipe(family, 2)
    expected = pipeline(recipe).score(*prompts)
    batch = ServeBatch(0, [ServeSequence(i, len(p), 0, False, p) for i, p in enumerate(prompts)])
    first, last = (build_stage(recipe, stage=stage, device="cuda:0") for stage in (0, 1))
    results = finish(last.serve(batch, finish(first.serve(batch, None))))
    assert [result.nll for result in results] == pytest.approx([result.nll for result in expected], rel=1e-3)


def test_bfloat16_training_learns(tiny_recipe: TinyRecipe) -> None:
    stage = build_stage(tiny_recipe("llama", dtype="auto", learning_rate=3e-3), stage=0, device="cuda:0")
    tokens = (torch.arange(64, dtype=torch.int32) % 31).numpy().tobytes()
    losses = []
    for group in range(10):
        losses.append(finish(stage.forward(MicroBatch(group, group, 0, 1, 2, 32, tokens, tokens), None)))
        finish(stage.backward(group, None))
        finish(stage.prepare(group, stage.seal(group, None).square_norm ** 0.5, None))
        finish(stage.publish(group))
    stage.close()
    assert losses[-1] < 0.8 * losses[0]
