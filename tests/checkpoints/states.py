"""States of stages on disk and back, as a run and its successor do it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lemix_hpc.checkpoints.manifest import Manifest, SavedFile, SavedNode
from lemix_hpc.checkpoints.stage_state import SavedState, StageState, file_name, write_state
from lemix_hpc.checkpoints.store import Checkpoint


def saved(states: Sequence[StageState], directory: Path) -> SavedState:
    """What the stages of one node have handed out, to be read from a directory."""
    checkpoint = checkpoint_of(states, directory)
    return SavedState(checkpoint, checkpoint.manifest.saved[0], "training.resume")


def checkpoint_of(
    states: Sequence[StageState], directory: Path, model: dict[str, Any] | None = None, model_path: Path | None = None
) -> Checkpoint:
    """The same of a model with this config and these files."""
    directory.mkdir(exist_ok=True)
    files = []
    for stage, state in enumerate(states):
        written = write_state(state, directory / file_name(0, stage))
        files.append(SavedFile(file_name(0, stage), stage, written.nbytes, written.sha256, 0.0, 0.0))
    node = SavedNode(0, 0, 0, states[0].updates, states[0].schedule, -1, files)
    texts: dict[str, Any] = dict.fromkeys(("run", "engine", "across_nodes"), "") | {"dtype": "float32"}
    numbers: dict[str, Any] = {"step": 0, "created": 0.0, "nodes": 1, "stages": len(files)}
    where = None if model_path is None else str(model_path)
    manifest = Manifest(model_path=where, model=model or {}, saved=[node], **texts, **numbers)
    return Checkpoint(directory, manifest)
