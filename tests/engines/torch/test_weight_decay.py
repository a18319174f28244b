import pytest
from torch import nn

from lemix_hpc.config.training_section import ParameterKind
from lemix_hpc.engines.torch.build import build_stage
from lemix_hpc.engines.torch.weight_decay import kind_of, not_decayed
from tests.engines.torch.conftest import TinyRecipe


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (
            "llama",
            {
                "model.embed_tokens.weight": "embeddings",
                "model.layers.0.self_attn.q_proj.weight": None,
                "model.layers.0.input_layernorm.weight": "norms",
                "model.norm.weight": "norms",
                "lm_head.weight": None,
            },
        ),
        ("qwen2", {"model.layers.0.self_attn.q_proj.bias": "biases"}),
        (
            "gpt2",
            {
                "transformer.wte.weight": "embeddings",
                "transformer.wpe.weight": "embeddings",
                "transformer.h.0.ln_1.weight": "norms",
                "transformer.h.0.ln_1.bias": "biases",
                "transformer.h.0.attn.c_attn.weight": None,
            },
        ),
    ],
)
def test_kinds_of_parameters(family: str, expected: dict[str, ParameterKind | None], tiny_recipe: TinyRecipe) -> None:
    module = build_stage(tiny_recipe(family, 1), stage=0, device="cpu")._module
    found = {name: kind_of(name, parameter) for name, parameter in module.named_parameters()}
    assert {name: found[name] for name in expected} == expected
    matrices = [name for name, parameter in module.named_parameters() if parameter.ndim == 2]
    assert all((found[name] in (None, "embeddings")) == (name in matrices) for name in found)


def test_positions_of_what_is_not_decayed() -> None:
    modules = {"embed_tokens": nn.Embedding(3, 2), "norm": nn.LayerNorm(2), "up": nn.Linear(2, 2)}
    named = list(nn.ModuleDict(modules).named_parameters())
    assert [name for name, _ in named] == ["embed_tokens.weight", "norm.weight", "norm.bias", "up.weight", "up.bias"]
    assert not_decayed(named, []) == frozenset()
    assert not_decayed(named, ["norms", "biases"]) == {1, 2, 4}
    assert not_decayed(named, ["embeddings"]) == {0}
