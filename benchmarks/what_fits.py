"""Which models fit which GPUs, by the product's own plan: the table of docs/memory.md.

    python benchmarks/what_fits.py

Nothing is measured here. Shapes are those of the models' configs; bfloat16, micro-batches of one sequence of 2048 tokens, 8 of
them in a step, and a batch of 64 requests of up to 4096 tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.memory_advice import Gpus, Layout, best, layouts

TEXT = Path(__file__).resolve().parents[1] / "recipes" / "data" / "sums.jsonl"
HOSTS = ("1x80GB", "4x80GB", "8x80GB", "4x40GB", "8x141GB")


def _shape(kind: str, hidden: int, inner: int, layers: int, heads: int, keys: int, vocab: int) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "vocab_size": vocab,
    }


MODELS = {
    "Llama-3.2-3B": _shape("llama", 3072, 8192, 28, 24, 8, 128256) | {"tie_word_embeddings": True},
    "Llama-3.1-8B": _shape("llama", 4096, 14336, 32, 32, 8, 128256),
    "Qwen2.5-14B": _shape("qwen2", 5120, 13824, 48, 40, 8, 152064),
    "Qwen2.5-32B": _shape("qwen2", 5120, 27648, 64, 40, 8, 152064),
    "Llama-3.1-70B": _shape("llama", 8192, 28672, 80, 64, 8, 128256),
}


def recipe(config: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "what-fits",
            "model": {"config": config},
            "engine": {"kind": "vllm", "dtype": "bfloat16", "max_batch_requests": 64},
            "serving": {
                "mode": "generate",
                "max_prompt_tokens": 3072,
                "max_new_tokens": 1024,
                "source": {"kind": "poisson", "rate": 1, "requests": 1},
            },
            "training": {"sequence_length": 2048, "micro_batches_per_step": 8, "data": {"path": str(TEXT)}},
        }
    )


def cell(way: Layout | None) -> str:
    if way is None:
        return "no"
    offload = f", offloaded ({way.host / 1e9:,.0f} GB of host memory)" if way.offload else ""
    return f"{way.replicas} x {way.stages}{offload}"


def table() -> str:
    """In Markdown: replicas x stages of each."""
    lines = [f"| | {' | '.join(HOSTS)} |", "|---" * (len(HOSTS) + 1) + "|"]
    for name, config in MODELS.items():
        ways = [best(layouts(recipe(config), Gpus.parse(host))) for host in HOSTS]
        lines.append(f"| {name} | {' | '.join(map(cell, ways))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
