"""What stands in an exported directory. tests/runtime/test_checkpoint_runs.py shows that transformers and vLLM load it."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from lemix_hpc.checkpoints import export as module
from lemix_hpc.checkpoints.export import export
from lemix_hpc.config.errors import UserError
from lemix_hpc.workload.byte_level import byte_level_tokenizer
from tests.checkpoints.conftest import SHAPES, MakeCheckpoint, tensors

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}


@pytest.mark.parametrize(
    ("given", "theta", "scaling"),
    [
        ({}, 10000.0, None),
        ({"rope_theta": 5e5}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, 5e5, LLAMA3),
        ({"rope_parameters": {"rope_theta": 5e5, **LLAMA3}}, 5e5, LLAMA3),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 10000.0, {"rope_type": "linear", "factor": 2.0}),
    ],
)
def test_readers_of_all_versions_find_the_rotary_embeddings(
    given: dict[str, Any], theta: float, scaling: dict[str, Any] | None, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    """Before transformers 5, the base is at the top level and the rest in `rope_scaling`."""
    model = {"model_type": "llama", "max_position_embeddings": 4096, **given}
    export(make_checkpoint(1, model=model), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_theta"] == theta
    old = config["rope_scaling"]
    assert old == scaling or {key: old[key] for key in scaling or {}} == scaling
    assert config["torch_dtype"] == config["dtype"] == "float32"
    settings = {key: deepcopy(value) for key, value in model.items() if key != "model_type"}
    expected = AutoConfig.for_model("llama", **settings).rope_parameters
    assert AutoConfig.from_pretrained(tmp_path / "out").rope_parameters == expected


@pytest.mark.parametrize(
    "model",
    [
        {"model_type": "mistral", "num_attention_heads": 4, "num_hidden_layers": 2, "sliding_window": None},
        {"model_type": "qwen2", "tie_word_embeddings": True, "use_sliding_window": True, "num_hidden_layers": 2},
        {"model_type": "gpt2", "n_layer": 3, "n_embd": 64, "tie_word_embeddings": False},
    ],
)
def test_all_values_of_a_models_config_are_kept(
    model: dict[str, Any], make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    export(make_checkpoint(1, model=model | {"eos_token_id": 5}), tmp_path / "out")
    settings = {key: deepcopy(value) for key, value in model.items() if key != "model_type"}
    expected = AutoConfig.for_model(model["model_type"], **settings, eos_token_id=5).to_dict()
    found = AutoConfig.from_pretrained(tmp_path / "out").to_dict()
    ours = {"architectures", "dtype", "_name_or_path", "bos_token_id", "transformers_version"}
    assert {k: v for k, v in found.items() if k not in ours} == {k: v for k, v in expected.items() if k not in ours}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_rounded_as_torch_rounds_and_cut_into_files(
    dtype: str, make_checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 50)
    export(make_checkpoint(1), tmp_path / "out", dtype=dtype)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == SHAPES.keys()
    assert len(set(index["weight_map"].values())) > 1
    expected = tensors(0, 1) | tensors(1, 1)
    for name, file in index["weight_map"].items():
        found = load_file(tmp_path / "out" / file)[name]
        assert torch.equal(found, torch.from_numpy(expected[name]).to(getattr(torch, dtype)))
    assert index["metadata"]["total_size"] == sum(
        np.prod(shape) * (4 if dtype == "float32" else 2) for shape in SHAPES.values()
    )


def test_the_models_own_tokenizer_and_generation_config_come_along(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    source = tmp_path / "model"
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(source)
    (source / "generation_config.json").write_text('{"temperature": 0.5}')
    (source / "model.safetensors").write_text("weights")
    export(make_checkpoint(1, model_path=str(source)), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == "{{ messages }}"
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"temperature": 0.5}
    gone = make_checkpoint(2, model_path=str(tmp_path / "gone"))
    with pytest.raises(UserError, match="is not there any more; give a copy of its tokenizer files with --tokenizer"):
        export(gone, tmp_path / "again")
    assert [path.name for path in export(gone, tmp_path / "again", tokenizer=source)] == ["again"]


def test_without_a_tokenizer_of_its_own_a_model_gets_the_byte_level_one(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    export(make_checkpoint(1), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert tokenizer.eos_token_id == config["eos_token_id"] == 256
    assert tokenizer.chat_template
    # The name of the class that transformers before 5 know.
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    chosen = make_checkpoint(2, model={"model_type": "llama", "eos_token_id": 7})
    export(chosen, tmp_path / "chosen")
    assert json.loads((tmp_path / "chosen" / "config.json").read_text())["eos_token_id"] == 7


def test_an_export_that_fails_leaves_nothing_under_its_name(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(1)
    (checkpoint.path / "node-0-stage-1.safetensors").unlink()
    with pytest.raises(UserError, match="node-0-stage-1"):
        export(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="the emulated engine has no weights"):
        export(make_checkpoint(2, model={}, engine="emulated"), tmp_path / "out")
