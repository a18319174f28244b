"""The training state of one stage in a file: float32 weights by Hugging Face's names, and both moments of AdamW beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from lemix_hpc.checkpoints import tensor_file
from lemix_hpc.checkpoints.host_memory import HostMemory
from lemix_hpc.checkpoints.manifest import SavedNode
from lemix_hpc.checkpoints.store import Checkpoint
from lemix_hpc.checkpoints.tensor_file import TensorSpec, Written
from lemix_hpc.config.errors import UserError

FIRST_MOMENT = "exp_avg/"
SECOND_MOMENT = "exp_avg_sq/"
"""In front of a weight's name: its moments. The weight itself goes by its name alone."""

Tensor = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StageState:
    """What training on a stage goes on from.

    `tensors` are in host memory, by name as in the file. `updates`: how many of them AdamW has made; `schedule`: where the
    schedule of the learning rate stands; `dtype`: that of the weights that are served, such as "bfloat16". `memory` has nothing
    but the tensors, in order, if another process can read it.
    """

    tensors: Mapping[str, Tensor]
    updates: int
    schedule: int
    dtype: str
    memory: HostMemory | None = None


def file_name(node: int, stage: int) -> str:
    return f"node-{node}-stage-{stage}.safetensors"


def write_state(state: StageState, path: Path) -> Written:
    """Write a stage's state and wait until it is on disk. Raises OSError."""
    specs, metadata = layout(state)
    return tensor_file.write(path, specs, lambda spec: _bytes(state.tensors[spec.name]), metadata)


def layout(state: StageState) -> tuple[list[TensorSpec], dict[str, str]]:
    """The tensors in the file of a state, in order, and its metadata."""
    specs = [TensorSpec(name, tensor.shape) for name, tensor in state.tensors.items()]
    return specs, {"updates": str(state.updates), "schedule": str(state.schedule), "format": "pt"}


class SavedState:
    """One node of a checkpoint, whatever number of stages it was saved from. Only the tensors asked for are read.

    `key` names the reader in messages, such as "training.resume".
    """

    def __init__(self, checkpoint: Checkpoint, node: SavedNode, key: str) -> None:
        self._key = key
        self._directory = checkpoint.path
        self._files = {name: checkpoint.path / file.name for file in node.files for name in self._names(file.name)}
        self.updates = node.updates
        self.schedule = node.schedule

    @property
    def weights(self) -> Iterator[str]:
        """The names of all weights."""
        return (name for name in self._files if not name.startswith((FIRST_MOMENT, SECOND_MOMENT)))

    def shape(self, name: str) -> tuple[int, ...]:
        with self._open(self._file_of(name)) as file:
            return tuple(file.get_slice(name).get_shape())

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """A tensor by its name in the file. Raises UserError if it is not there, not readable, or of another shape."""
        path = self._file_of(name)
        try:
            with self._open(path) as file:
                tensor: Tensor = file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self._key}: the tensor {name} could not be read from {path}: {error}") from error
        if shape is not None and tensor.shape != shape:
            raise UserError(
                f"{self._key}: the tensor {name} in {path} has the shape {tensor.shape}, and this model's has {shape}; give "
                "a checkpoint of the same model"
            )
        return tensor

    def _file_of(self, name: str) -> Path:
        try:
            return self._files[name]
        except KeyError:
            raise UserError(
                f"{self._key}: {self._directory} has no tensor {name}; give a checkpoint of the same model"
            ) from None

    def _names(self, file_name: str) -> list[str]:
        path = self._directory / file_name
        try:
            with self._open(path) as file:
                return list(file.keys())
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{self._key}: {path} could not be read: {error}; `lemix checkpoint verify` finds damage, and an older "
                "checkpoint may be whole"
            ) from error

    def _open(self, path: Path) -> safe_open:
        return safe_open(path, framework="np")


def _bytes(tensor: Tensor) -> memoryview:
    return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
