"""Tiny models of every family, as checkpoints that Hugging Face has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 224,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 256,
    "initializer_range": 0.08,
}


def hugging_face(family: str, *, tied: bool, **more: Any) -> Any:
    """A model with weights far from uniform outputs, and biases that are not zero."""
    config = AutoConfig.for_model(family, tie_word_embeddings=tied, **SIZES | more)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
    return model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied Llama without a tokenizer."""
    directory = tmp_path_factory.mktemp("models") / "tiny-llama"
    hugging_face("llama", tied=False).save_pretrained(directory)
    return directory
