"""What vLLM is started with, and what is refused before."""

from pathlib import Path
from typing import Any

import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.memory_plan import planned_cache
from lemix_hpc.engines.vllm import args
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
    told = server_args(recipe({"max_batch_requests": 5, "vllm": {"args": {"enable_prefix_caching": False}}}), tmp_path)
    assert (told.pipeline_parallel_size, told.max_num_seqs, told.served_model_name) == (2, 5, ["run"])
    assert told.scheduling_policy == "priority"
    assert told.enable_prefix_caching is False
    assert told.load_format == "dummy"
    assert told.kv_cache_memory_bytes == 250_000_000
    assert told.additional_config["weight_version"] == 0
    assert server_args(recipe(), tmp_path, 7).additional_config["weight_version"] == 7


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"engine": {"vllm": {"args": {"no_such": 1}}}}, r"engine\.vllm\.args\.no_such: .* no such argument"),
        ({"engine": {"vllm": {"args": {"seed": 1}}}}, r"engine\.vllm\.args\.seed: the recipe's other keys decide this"),
        ({"num_attention_heads": 8}, "have the size 16, and vLLM on CPUs supports 32, 64.*set engine.kind: torch"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        server_args(recipe(**wrong), tmp_path)


def test_on_a_gpu_the_cache_is_what_training_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none here: what vLLM would say of one."""

    class Gpu:
        @staticmethod
        def is_cpu() -> bool:
            return False

        @staticmethod
        def get_device_total_memory() -> float:
            return 80e9

    monkeypatch.setattr(args, "current_platform", Gpu)
    content = recipe()
    assert args._cache_bytes(content) is None
    text = Path(__file__).parents[3] / "recipes" / "data" / "sums.jsonl"
    trains = Recipe.model_validate(content.model_dump() | {"training": {"data": {"path": str(text)}}})
    assert args._cache_bytes(trains) == planned_cache(trains, 80e9)
    told = Recipe.model_validate(trains.model_dump() | {"engine": {"kind": "vllm", "vllm": {"kv_cache_gb": 3}}})
    assert args._cache_bytes(told) == 3e9
