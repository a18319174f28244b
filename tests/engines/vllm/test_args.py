"""What vLLM is started with, and what is refused before."""

from pathlib import Path
from typing import Any

import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.vllm.args import server_args

CONFIG = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 224,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 257,
    "max_position_embeddings": 256,
}


def recipe(engine: dict[str, Any] | None = None, **model: Any) -> Recipe:
    content = {"model": {"config": CONFIG | model}, "engine": {"kind": "vllm"} | (engine or {}), "nodes": {"stages": 2}}
    return Recipe.model_validate(content | {"serving": {"http": {}}})


def test_the_recipe_decides_what_vllm_is_told(tmp_path: Path) -> None:
    args = server_args(recipe({"max_batch_requests": 5, "vllm": {"args": {"enable_prefix_caching": False}}}), tmp_path)
    assert (args.pipeline_parallel_size, args.max_num_seqs, args.served_model_name) == (2, 5, ["run"])
    assert args.scheduling_policy == "priority"
    assert args.enable_prefix_caching is False
    assert args.load_format == "dummy"
    assert args.kv_cache_memory_bytes == 250_000_000
    assert args.additional_config["weight_version"] == 0
    assert server_args(recipe(), tmp_path, 7).additional_config["weight_version"] == 7


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"engine": {"vllm": {"args": {"no_such": 1}}}}, r"engine\.vllm\.args\.no_such: .* no such argument"),
        ({"engine": {"vllm": {"args": {"seed": 1}}}}, r"engine\.vllm\.args\.seed: the recipe's other keys decide this"),
        ({"model_type": "gpt2"}, "serves and trains llama, mistral, qwen2, and this is gpt2; set engine.kind: torch"),
        ({"num_attention_heads": 8}, "have the size 16, and vLLM on CPUs supports 32, 64.*set engine.kind: torch"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        server_args(recipe(**wrong), tmp_path)
