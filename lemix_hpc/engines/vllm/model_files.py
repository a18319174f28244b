"""The files that vLLM wants of a model: those of its checkpoint, or made from what the recipe says."""

from __future__ import annotations

from pathlib import Path

import msgspec

from lemix_hpc.checkpoints.hugging_face_files import ARCHITECTURES
from lemix_hpc.config.recipe import Model
from lemix_hpc.engines.model_sizes import model_config
from lemix_hpc.workload.byte_level import byte_level_tokenizer
from lemix_hpc.workload.tokenizer import ByteTokenizer, load_tokenizer


def model_directory(model: Model, scratch: Path) -> Path:
    """The checkpoint's directory, or one below `scratch` with the config of a model without a checkpoint."""
    return model.path or _written(model, scratch)


def tokenizer_directory(model: Model, scratch: Path) -> Path:
    """The checkpoint's directory, or one below `scratch` with the byte-level tokenizer where the model brings none."""
    if model.path is not None and not isinstance(load_tokenizer(model), ByteTokenizer):
        return model.path
    return _written(model, scratch)


def _written(model: Model, scratch: Path) -> Path:
    """Config and byte-level tokenizer; vLLM looks for a config beside a tokenizer, too."""
    directory = scratch / "model"
    directory.mkdir(exist_ok=True)
    config = dict(model_config(model))
    config.setdefault("architectures", [ARCHITECTURES[config["model_type"]]])
    (directory / "config.json").write_bytes(msgspec.json.encode(config))
    byte_level_tokenizer().save_pretrained(directory)
    return directory
