"""Where a stage's initial weights come from: a checkpoint's own tensors, or a seeded random initialisation."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from lemix_hpc.config.errors import UserError
from lemix_hpc.engines.weight_files import tensor_files

_ROWS_AT_ONCE = 4096


class WeightSource(Protocol):
    def read(self, name: str, shape: torch.Size) -> torch.Tensor:
        """The tensor of a parameter, by its Hugging Face name, on the CPU."""
        ...


class RandomWeights:
    """Hugging Face's initialisation rules, each tensor drawn from a generator of its own.

    A tensor depends on the seed and its name alone, so every stage builds its slice of the same model without ever
    holding the rest.
    """

    def __init__(self, seed: int, std: float, residual_layers: int | None = None) -> None:
        """`residual_layers`: GPT-2 scales the projections into the residual stream by 1 / sqrt(2 * layers)."""
        self._seed = seed
        self._std = std
        self._residual_layers = residual_layers

    def read(self, name: str, shape: torch.Size) -> torch.Tensor:
        if name.endswith(".bias"):
            return torch.zeros(shape)
        if len(shape) == 1:
            return torch.ones(shape)
        std = self._std
        if self._residual_layers is not None and name.endswith("c_proj.weight"):
            std /= math.sqrt(2 * self._residual_layers)
        digest = hashlib.blake2b(f"{self._seed}/{name}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest) >> 1)
        return torch.empty(shape).normal_(0.0, std, generator=generator)


class Checkpoint:
    """A directory with `model.safetensors`, or shards and their `model.safetensors.index.json`.

    Only the tensors asked for are read. Checkpoints of the bare transformer, GPT-2's own among them, leave out the
    name's first part (`prefix`), and a tied embedding may be stored under the head's name. `resized`: tensors with a row for
    each token, which may have fewer rows than asked for.
    """

    def __init__(self, directory: Path, *, prefix: str, tied_names: Sequence[str], resized: Sequence[str] = ()) -> None:
        self._directory = directory
        self._prefix = prefix
        self._tied_names = tuple(tied_names)
        self._resized = tuple(resized)
        self._files = tensor_files(directory)

    def read(self, name: str, shape: torch.Size) -> torch.Tensor:
        stored = self._stored_name(name)
        path = self._directory / self._files[stored]
        try:
            with safe_open(path, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(stored)
        except (OSError, SafetensorError) as error:
            raise UserError(f"model.path: the tensor {stored} could not be read from {path}: {error}") from error
        if name in self._resized and tensor.shape[1:] == shape[1:] and tensor.shape[0] < shape[0]:
            return with_rows(tensor, shape[0])
        if tensor.shape != shape:
            raise UserError(
                f"model.path: the tensor {stored} in {path} has the shape {tuple(tensor.shape)}, but config.json asks for "
                f"{tuple(shape)}. Use the config.json that belongs to the checkpoint."
            )
        return tensor

    def _stored_name(self, name: str) -> str:
        names = self._tied_names if name in self._tied_names else (name,)
        for candidate in names:
            for stored in (candidate, candidate.removeprefix(self._prefix)):
                if stored in self._files:
                    return stored
        raise UserError(
            f"model.path: {self._directory} has no tensor named {name}. It may be incomplete, or of another model than its "
            "config.json says."
        )


def with_rows(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """With further rows, each the mean of those that are there, as Hugging Face begins new tokens (but for its noise).

    A token that nothing is known of yet is then as likely as the others on average (John Hewitt, "Initializing New Word
    Embeddings for Pretrained Language Models", 2021). The mean is the same to the last bit on all stages.
    """
    # By NumPy, which adds row by row, however many threads torch has.
    total = np.zeros(tensor.shape[1:])
    for start in range(0, len(tensor), _ROWS_AT_ONCE):
        total += tensor[start : start + _ROWS_AT_ONCE].double().numpy().sum(axis=0)
    mean = torch.from_numpy(total / len(tensor)).to(tensor.dtype)
    return torch.cat([tensor, mean.expand(rows - len(tensor), *mean.shape)])
