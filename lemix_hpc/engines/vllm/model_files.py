"""The files that vLLM wants of a model: those of its checkpoint, or made from what the recipe says."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from lemix_hpc.checkpoints.hugging_face_files import ARCHITECTURES
from lemix_hpc.config.recipe import Model
from lemix_hpc.engines.model_sizes import model_config
from lemix_hpc.workload.byte_level import byte_level_tokenizer
from lemix_hpc.workload.tokenizer import ByteTokenizer, load_tokenizer

_GENERATION = "generation_config.json"


def fills(model: Model) -> bool:
    """Whether the stages fill in the weights that vLLM would not find in files: random ones, and those with more rows."""
    return model.path is None or model.resize


def model_directory(model: Model, scratch: Path) -> Path:
    """The checkpoint's directory, or one below `scratch` with the config of a model that has none, or is resized."""
    if model.path is not None and not model.resize:
        return model.path
    directory = _written(model, scratch)
    if model.path is not None and (model.path / _GENERATION).is_file():
        shutil.copyfile(model.path / _GENERATION, directory / _GENERATION)
    return directory


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
