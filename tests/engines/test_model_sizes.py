import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Model
from lemix_hpc.engines.model_sizes import ModelSizes, describe

LLAMA_3_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def test_llama() -> None:
    assert describe(Model(config=LLAMA_3_8B)) == ModelSizes(
        family="llama",
        layers=32,
        hidden=4096,
        vocab=128256,
        layer_parameters=2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336,
        head_parameters=4096 * 128256,
        max_positions=None,
        layer_vectors=2 * 4096,
        inner=14336,
        queries=4096,
        keys=1024,
        tied=False,
    )


def test_gpt2_has_an_end() -> None:
    sizes = describe(Model(config={"model_type": "gpt2", "n_layer": 24, "n_embd": 1024, "n_head": 16}))
    assert (sizes.layers, sizes.hidden, sizes.max_positions) == (24, 1024, 1024)
    assert sizes.layer_parameters == 12 * 1024 * 1024


@pytest.mark.parametrize("config", [{"model_type": f} for f in ("llama", "mistral", "qwen2", "gpt2")] + [LLAMA_3_8B])
def test_defaults_are_those_of_hugging_face(config: dict[str, Any]) -> None:
    from transformers import AutoConfig

    sizes = describe(Model(config=config))
    settings = dict(config)
    actual = AutoConfig.for_model(settings.pop("model_type"), **settings)
    assert (sizes.layers, sizes.hidden, sizes.vocab) == (
        actual.num_hidden_layers,
        actual.hidden_size,
        actual.vocab_size,
    )


@pytest.mark.parametrize("config", [{"model_type": f} for f in ("llama", "mistral", "qwen2", "gpt2")] + [LLAMA_3_8B])
def test_layer_parameters_are_the_matrices_of_a_layer(config: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = dict(config, num_hidden_layers=1)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
    matrices = [
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2 and any(part in name for part in ("layers.0.", ".h.0."))
    ]
    assert describe(Model(config=config)).layer_parameters == sum(matrices)


def test_read_from_a_checkpoint_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B))
    assert describe(Model(path=tmp_path)) == describe(Model(config=LLAMA_3_8B))


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no .*config.json"), ("{", "could not be read"), ("[]", "does not hold a JSON object")],
)
def test_a_bad_config_file(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        describe(Model(path=tmp_path))


def test_an_unknown_family_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'bert' is not supported. Supported are llama .*mistral, qwen2 and gpt2"):
        describe(Model(config={"model_type": "bert"}))


def test_no_model_at_all() -> None:
    with pytest.raises(UserError, match=r"needs `path` .* or `config`"):
        describe(Model())


def test_torch_is_not_imported() -> None:
    code = "import lemix_hpc.engines.model_sizes, lemix_hpc.engines.torch.partition, sys; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize("value", ["many", 0, 1.5])
def test_a_size_that_is_none(value: object) -> None:
    with pytest.raises(UserError, match=r"num_hidden_layers is .* must be a positive whole number"):
        describe(Model(config=LLAMA_3_8B | {"num_hidden_layers": value}))
