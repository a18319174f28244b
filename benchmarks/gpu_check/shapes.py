"""The models of the checks: one stage of an 8B model on a GPU, tiny ones on a CPU; and stages built of them."""

from __future__ import annotations

from typing import Any

import torch

from lemix_hpc.config.recipe import Model
from lemix_hpc.config.training_section import Training
from lemix_hpc.engines.torch.build import hugging_face_config
from lemix_hpc.engines.torch.kv_cache import KeyValueCache
from lemix_hpc.engines.torch.optimizer import StageOptimizer
from lemix_hpc.engines.torch.payloads import Wire
from lemix_hpc.engines.torch.stage import TorchStage
from lemix_hpc.engines.vllm.module import FusedLlamaStage

EIGHT_B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}
TINY = EIGHT_B | {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 257,
    "max_position_embeddings": 1024,
}


def on_gpu(device: str) -> bool:
    return device != "cpu"


def config(device: str) -> dict[str, Any]:
    return EIGHT_B if on_gpu(device) else TINY


def dtype(device: str) -> torch.dtype:
    return torch.bfloat16 if on_gpu(device) else torch.float32


def middle_stage(device: str, layers: int = 8, *, like: dict[str, Any] | None = None) -> FusedLlamaStage:
    """Layers of the model that are neither the first nor the last, with random weights made on the device."""
    settings = hugging_face_config(Model(config=like or config(device)))
    hidden, inner = settings.hidden_size, settings.intermediate_size
    head = hidden // settings.num_attention_heads
    rows = (settings.num_attention_heads + 2 * settings.num_key_value_heads) * head
    shapes = {
        "self_attn.qkv_proj": (rows, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_up_proj": (2 * inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    place, kind = torch.device(device), dtype(device)
    draw = torch.Generator(device=place).manual_seed(1)
    weights = {}
    for index in range(layers):
        for name, shape in shapes.items():
            weight = torch.empty(shape, dtype=kind, device=place).normal_(0.0, 0.02, generator=draw)
            weights[f"model.layers.{index}.{name}.weight"] = weight
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{index}.{norm}.weight"] = torch.ones(hidden, dtype=kind, device=place)
    return FusedLlamaStage(settings, weights, range(layers), first=False, last=False, device=place)


def stage_of(module: FusedLlamaStage, training: Training | None, *, keep_graphs: bool = False) -> TorchStage:
    """What serves and trains these layers."""
    attention: Any = module.blocks[0]._branch
    head_dim = attention._head_dim
    heads = attention._sizes[1] // head_dim
    kind = next(module.parameters()).dtype
    return TorchStage(
        module,
        KeyValueCache(range(len(module.blocks) // 2), heads, head_dim, kind, module.device),
        Wire(module.device),
        None if training is None else StageOptimizer(module, training),
        seed=0,
        keep_graphs=keep_graphs,
        max_positions=None,
    )


def settle(device: str) -> None:
    """Wait until the device has done all of it."""
    if on_gpu(device):
        torch.cuda.synchronize()
