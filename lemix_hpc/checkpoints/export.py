"""From a checkpoint to a directory that transformers and vLLM load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lemix_hpc.checkpoints import tensor_file
from lemix_hpc.checkpoints.hugging_face_files import copy_tokenizer, write_config
from lemix_hpc.checkpoints.manifest import SavedNode
from lemix_hpc.checkpoints.stage_state import SavedState, Tensor
from lemix_hpc.checkpoints.store import Checkpoint
from lemix_hpc.checkpoints.tensor_file import TensorSpec
from lemix_hpc.config.errors import UserError

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
SHARD_BYTES = 4_000_000_000


def export(
    checkpoint: Checkpoint,
    directory: Path,
    *,
    node: int | None = None,
    mean: bool = False,
    dtype: str | None = None,
    tokenizer: Path | None = None,
) -> list[Path]:
    """Write the weights of a checkpoint as Hugging Face directories, and return these.

    That is `directory` itself for one node, the only one or `node`, and for the `mean` of all; otherwise one below it for each
    node. `dtype`: by default that of the weights that were served. `tokenizer`: a directory to take the tokenizer from, by
    default the model's. Raises UserError for a node that was not saved, a directory with content, and files that cannot be
    read or written.
    """
    manifest = checkpoint.manifest
    if not manifest.model:
        raise UserError(f"{checkpoint.path}: the {manifest.engine} engine has no weights to export")
    dtype = dtype or manifest.dtype
    if dtype not in DTYPES:
        raise UserError(f"--dtype: expected one of {', '.join(DTYPES)}; found {dtype}")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory}: is not an empty directory; give a new one")
    if tokenizer is None and manifest.model_path is not None:
        tokenizer = Path(manifest.model_path)
    wanted = _targets(checkpoint, directory, node, mean=mean)
    try:
        for target, nodes in wanted.items():
            _export(checkpoint, target, nodes, dtype, tokenizer)
    except OSError as error:
        raise UserError(f"{error.filename or directory}: {error.strerror or error}") from error
    return list(wanted)


def _targets(
    checkpoint: Checkpoint, directory: Path, node: int | None, *, mean: bool
) -> dict[Path, Sequence[SavedNode]]:
    """The nodes whose mean goes into each directory."""
    saved = checkpoint.manifest.saved
    if mean or (len(saved) == 1 and node is None):
        return {directory: saved}
    if node is None:
        return {directory / f"node-{each.node}": [each] for each in saved}
    chosen = [each for each in saved if each.node == node]
    # Nodes that take each step together are all alike, and one is saved.
    if not chosen and checkpoint.manifest.across_nodes == "sync" and node < checkpoint.manifest.nodes:
        chosen = saved[:1]
    if not chosen:
        raise UserError(
            f"--node {node}: {checkpoint.path} has node {', '.join(str(each.node) for each in saved)}; give one of these"
        )
    return {directory: chosen}


def _export(
    checkpoint: Checkpoint, target: Path, nodes: Sequence[SavedNode], dtype: str, tokenizer: Path | None
) -> None:
    """Complete once it has its name."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    own_tokenizer = copy_tokenizer(tokenizer, partial)
    write_config(checkpoint.manifest.model, dtype, partial, byte_level=not own_tokenizer)
    _write_weights([SavedState(checkpoint, node, str(checkpoint.path)) for node in nodes], dtype, partial)
    if target.exists():
        target.rmdir()
    partial.rename(target)


def _write_weights(states: Sequence[SavedState], dtype: str, directory: Path) -> None:
    specs = [TensorSpec(name, states[0].shape(name), DTYPES[dtype]) for name in sorted(states[0].weights)]
    shards = list(_shards(specs))
    files: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        files |= {spec.name: name for spec in shard}
        tensor_file.write(directory / name, shard, lambda spec: _in_dtype(_mean(states, spec), dtype), {"format": "pt"})
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(spec.nbytes for spec in specs)}, "weight_map": files}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(specs: Sequence[TensorSpec]) -> Iterator[list[TensorSpec]]:
    """Cut where a file would become too large; a tensor that is larger has one of its own."""
    shard: list[TensorSpec] = []
    for spec in specs:
        if shard and sum(each.nbytes for each in shard) + spec.nbytes > SHARD_BYTES:
            yield shard
            shard = []
        shard.append(spec)
    yield shard


def _mean(states: Sequence[SavedState], spec: TensorSpec) -> Tensor:
    if len(states) == 1:
        return states[0].read(spec.name, spec.shape)
    total = np.zeros(spec.shape)
    for state in states:
        total += state.read(spec.name, spec.shape)
    return (total / len(states)).astype(np.float32)


def _in_dtype(values: Tensor, dtype: str) -> Any:
    """The bytes of values, rounded as torch does."""
    import torch

    rounded = torch.from_numpy(values).to(getattr(torch, dtype)).contiguous()
    return rounded.reshape(-1).view(torch.uint8).numpy()
