"""Writing tensors in the safetensors format, piece by piece, so that no thread holds the interpreter and no copy is made.

The library's own writer makes bytes of everything first. Its reader is used as it is.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PIECE = 1 << 22
"""Bytes that are hashed and written at a time."""

SIZES = {"F32": 4, "BF16": 2, "F16": 2}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor in a file; `dtype` in the format's own words, such as "F32"."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "F32"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * SIZES[self.dtype]


@dataclass(frozen=True, slots=True)
class Written:
    """What a file has become: its size, and the SHA-256 of its bytes in hexadecimal."""

    nbytes: int
    sha256: str


def write(
    path: Path, specs: Sequence[TensorSpec], data: Callable[[TensorSpec], Any], metadata: Mapping[str, str]
) -> Written:
    """Write a file and wait until it is on disk.

    `data` gives a tensor's bytes when it is its turn: any contiguous buffer of its size. Raises OSError.
    """
    digest, nbytes = hashlib.sha256(), 0
    with path.open("wb", buffering=0) as file:
        for buffer in (_header(specs, metadata), *map(data, specs)):
            view = memoryview(buffer).cast("B")
            for start in range(0, len(view), PIECE):
                piece = view[start : start + PIECE]
                digest.update(piece)
                _write_all(file.fileno(), piece)
            nbytes += len(view)
        os.fsync(file.fileno())
    return Written(nbytes, digest.hexdigest())


def checksum(path: Path) -> Written:
    """The size and SHA-256 of a file that is there. Raises OSError."""
    digest, nbytes = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            nbytes += len(piece)
    return Written(nbytes, digest.hexdigest())


def _write_all(descriptor: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(descriptor, piece) :]


def _header(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for spec in specs:
        end = start + spec.nbytes
        header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text
