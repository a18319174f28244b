"""Checkpoints of a made-up model of two tensors, as a run would leave them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lemix_hpc.checkpoints.manifest import Manifest, SavedFile, SavedNode
from lemix_hpc.checkpoints.stage_state import FIRST_MOMENT, SECOND_MOMENT, StageState, file_name, write_state
from lemix_hpc.checkpoints.store import Checkpoint, begin, complete

NAMES = (("a.weight", "b.bias"), ("c.weight",))
"""The weights of each stage."""
SHAPES = {"a.weight": (3, 5), "b.bias": (7,), "c.weight": (2, 2)}
MakeCheckpoint = Callable[..., Checkpoint]


def tensors(stage: int, seed: int) -> dict[str, Any]:
    draw = np.random.default_rng(10 * seed + stage)
    names = [prefix + name for name in NAMES[stage] for prefix in ("", FIRST_MOMENT, SECOND_MOMENT)]
    return {name: draw.standard_normal(SHAPES[name.split("/")[-1]], dtype=np.float32) for name in names}


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """make_checkpoint(step, nodes=1, **of_the_manifest), in the directory of a run."""

    def make(step: int, nodes: int = 1, **others: Any) -> Checkpoint:
        unfinished = begin(tmp_path / "checkpoints", str(step))
        saved = [_node(unfinished, node, step) for node in range(nodes)]
        fields: dict[str, Any] = {
            "run": tmp_path.name,
            "step": step,
            "created": 1.7e9 + step,
            "model_path": None,
            "model": {"model_type": "llama", "hidden_size": 64},
            "engine": "torch",
            "dtype": "float32",
            "across_nodes": "local",
            "nodes": nodes,
            "stages": len(NAMES),
        }
        return complete(unfinished, Manifest(**fields | others, saved=saved))

    return make


def _node(directory: Path, node: int, step: int) -> SavedNode:
    files = []
    for stage in range(len(NAMES)):
        name = file_name(node, stage)
        written = write_state(StageState(tensors(stage, step + node), step, step, "float32"), directory / name)
        files.append(SavedFile(name, stage, written.nbytes, written.sha256, 0.1, 0.2))
    return SavedNode(node, version=step, steps=step, updates=step, schedule=step, round=-1, files=files)
