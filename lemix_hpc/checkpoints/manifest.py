"""What a checkpoint says of itself: `manifest.json`, which makes it complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.text_file import BROKEN_JSON, read_bytes

SCHEMA = 1
MANIFEST = "manifest.json"
LARGEST = 64 << 20
"""Bytes. It has some 200 for each stage of each node."""


class SavedFile(msgspec.Struct, frozen=True):
    """The state of one stage. `sha256` in hexadecimal; seconds for the snapshot, in which training rested, and for writing."""

    name: str
    stage: int
    nbytes: int
    sha256: str
    snapshot_s: float
    write_s: float


class SavedNode(msgspec.Struct, frozen=True):
    """One node at the weight version that it was saved at.

    `steps`: optimizer steps that this node has taken; `updates`: those of them that changed weights, which AdamW counts;
    `schedule`: where the learning rate's schedule stands; `round`: the last average of all nodes in it, -1 without any.
    """

    node: int
    version: int
    steps: int
    updates: int
    schedule: int
    round: int
    files: list[SavedFile]


class Manifest(msgspec.Struct, frozen=True):
    """A checkpoint of a run after `step` optimizer steps, over all nodes.

    `created` in seconds since the epoch. `model_path`: where the model's files are, None if it was made from a config;
    `model`: its Hugging Face config; `dtype`: that of the served weights. `across_nodes` as in the recipe; with "sync" all
    nodes are alike and one is saved.
    """

    run: str
    step: int
    created: float
    model_path: str | None
    model: dict[str, Any]
    engine: str
    dtype: str
    across_nodes: str
    nodes: int
    stages: int
    saved: list[SavedNode]
    schema: int = SCHEMA

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for node in self.saved for file in node.files)


def encode(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest)) + b"\n"


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the checkpoint in a directory.

    Raises UserError if there is none, it cannot be read, or a newer version of this program wrote it.
    """
    path = directory / MANIFEST
    try:
        content = read_bytes(path, most=LARGEST)
    except FileNotFoundError:
        raise UserError(
            f"{directory}: no checkpoint: it has no {MANIFEST}; give a directory such as RUN/checkpoints/step-00000100"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        schema = msgspec.json.decode(content, type=_Schema).schema
        if schema > SCHEMA:
            raise UserError(
                f"{path}: has schema {schema}, and this version knows {SCHEMA}; read it with a newer lemix-hpc"
            )
        return msgspec.json.decode(content, type=Manifest)
    except BROKEN_JSON as error:
        raise UserError(f"{path}: damaged: {error}; take another checkpoint") from error


class _Schema(msgspec.Struct):
    schema: int
