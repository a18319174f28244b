"""The tensors of a Hugging Face checkpoint: in which file each is, and whether they are all there. Without torch."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from safetensors import SafetensorError, safe_open

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.text_file import read_text, why_unreadable
from lemix_hpc.engines.model_sizes import describe_config

LARGEST_INDEX = 1 << 26
_EMBEDDINGS = ("model.embed_tokens.weight", "embed_tokens.weight", "transformer.wte.weight", "wte.weight")


def tensor_files(directory: Path) -> dict[str, str]:
    """The file of each tensor, in the directory. Raises UserError if there are none, or their index is damaged."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.exists():
        return dict.fromkeys(_tensors(single), single.name)
    try:
        content = json.loads(read_text(index, most=LARGEST_INDEX))
    except FileNotFoundError:
        raise UserError(
            f"model.path: {directory} has neither model.safetensors nor model.safetensors.index.json. Convert older formats "
            "by AutoModelForCausalLM.from_pretrained(old).save_pretrained(new)."
        ) from None
    except (OSError, ValueError, RecursionError, UserError) as error:
        raise UserError(f"model.path: the list of tensors {index} could not be read: {error}") from error
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        raise UserError(
            f"model.path: {index} has no `weight_map`, which says in which file each tensor is. Get the checkpoint again."
        )
    for name, file in files.items():
        if not isinstance(file, str) or PurePath(file).name != file or file in ("", ".."):
            raise UserError(
                f"model.path: {index} says that the tensor {name} is in {file!r}, which is no file of that directory. Get the "
                "checkpoint again."
            )
    return files


def check_weights(directory: Path, config: Mapping[str, Any]) -> None:
    """Raises UserError if files are missing or cut short, or have not the tensors of a model with this config. Reads no
    weights."""
    files = tensor_files(directory)
    wanted: dict[str, set[str]] = defaultdict(set)
    for name, file in files.items():
        wanted[file].add(name)
    shapes: dict[str, list[int]] = {}
    for file, names in wanted.items():
        found = _tensors(directory / file)
        if absent := names - found.keys():
            raise UserError(
                f"model.path: {directory / file} has no tensor {min(absent)}, which the index puts there. Get the file again."
            )
        shapes |= found
    sizes = describe_config(config)
    for layer in range(sizes.layers):
        if not any(f".{layer}." in f".{name}" for name in shapes):
            raise UserError(
                f"model.path: {directory} has no tensors of layer {layer}, and its config.json says that the model has "
                f"{sizes.layers}. Get what is missing, or use the config.json that belongs to the checkpoint."
            )
    for name in _EMBEDDINGS:
        if name in shapes and shapes[name] != [sizes.vocab, sizes.hidden]:
            raise UserError(
                f"model.path: the tensor {name} has the shape {tuple(shapes[name])}, but config.json asks for "
                f"{(sizes.vocab, sizes.hidden)}. Use the config.json that belongs to the checkpoint."
            )


def _tensors(path: Path) -> dict[str, list[int]]:
    """The shape of each tensor in a file."""
    if not path.exists():
        raise UserError(f"model.path: {path} is missing, which has a part of the weights. Get the whole checkpoint.")
    if why := why_unreadable(path):
        raise UserError(f"model.path: {why}")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  it is no dict
    except (OSError, SafetensorError) as error:
        raise UserError(f"model.path: {path} is damaged, or was cut short: {error}. Get the file again.") from error
