from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Model
from lemix_hpc.engines.torch.build import build_stage
from tests.engines.torch.conftest import TINY, MakePipeline, Reference, TinyRecipe


def test_sizes_that_do_not_fit_together(tiny_recipe: TinyRecipe) -> None:
    broken = tiny_recipe("llama", model=Model(config=TINY["llama"] | {"num_attention_heads": 5}))
    with pytest.raises(UserError, match="hidden_size is 64, which is not a multiple of its num_attention_heads, 5"):
        build_stage(broken, stage=0, device="cpu")


def test_more_stages_than_layers(tiny_recipe: TinyRecipe) -> None:
    with pytest.raises(UserError, match=r"nodes\.stages is 5, but the model has only 4 decoder layers"):
        build_stage(tiny_recipe("gpt2", 5), stage=0, device="cpu")


def test_rotary_embeddings_that_depend_on_the_length(tiny_recipe: TinyRecipe) -> None:
    config = TINY["llama"] | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}
    with pytest.raises(UserError, match="type 'dynamic', which change with the sequence's length"):
        build_stage(tiny_recipe("llama", model=Model(config=config)), stage=0, device="cpu")


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ],
)
def test_scaled_rotary_embeddings(
    rope: dict[str, Any],
    tiny_recipe: TinyRecipe,
    reference: Reference,
    pipeline: MakePipeline,
    prompts: list[list[int]],
) -> None:
    config = TINY["llama"] | {"rope_parameters": {"rope_theta": 1e4, **rope}}
    recipe = tiny_recipe("llama", 2, model=Model(config=config))
    prompt = prompts[3]
    with torch.no_grad():
        logits = reference(recipe)(torch.tensor([prompt])).logits[0]
    expected = float(cross_entropy(logits[:-1], torch.tensor(prompt[1:]), reduction="sum"))
    assert pipeline(recipe).score(prompt)[0].nll == pytest.approx(expected, abs=1e-4)
