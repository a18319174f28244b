"""Where a run goes on from: a checkpoint, and which of its nodes each node of the run starts as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lemix_hpc.checkpoints.manifest import SavedNode
from lemix_hpc.checkpoints.stage_state import SavedState
from lemix_hpc.checkpoints.store import CHECKPOINTS, Checkpoint, newest_whole
from lemix_hpc.config.errors import UserError

KEY = "training.resume"
_SHAPE_KEYS = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "tie_word_embeddings")


@dataclass(frozen=True, slots=True)
class NodeStart:
    """How far a node is at the start: its weight version, and the optimizer steps that it has taken."""

    version: int = 0
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Resumption:
    """`continued`: the checkpoint is of this very run, whose numbers go on; a new run counts its own from 0."""

    checkpoint: Checkpoint
    continued: bool = False

    def start(self, node: int) -> NodeStart:
        saved = self._saved(node)
        return NodeStart(saved.version, saved.steps) if self.continued else NodeStart()

    def versions(self, nodes: int) -> dict[int, int]:
        """The weight version at which each of so many nodes starts."""
        return {node: self.start(node).version for node in range(nodes)}

    def state(self, node: int) -> SavedState:
        """What a node starts from: what was saved of it, or of another one where the run had other nodes.

        Raises UserError for files that cannot be read.
        """
        return SavedState(self.checkpoint, self._saved(node), KEY)

    def _saved(self, node: int) -> SavedNode:
        saved = self.checkpoint.manifest.saved
        return next((each for each in saved if each.node == node), saved[node % len(saved)])


def find_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a directory, or the newest whole one of the run in it. Raises UserError if there is none."""
    if not (path / CHECKPOINTS).is_dir():
        return Checkpoint.read(path)
    found, problems = newest_whole(path / CHECKPOINTS)
    for problem in problems:
        print(f"{KEY}: {problem}; an older checkpoint is taken", flush=True)
    if found is None:
        raise UserError(f"{KEY}: {path} has no whole checkpoint; `lemix checkpoint list` shows what there is")
    return found


def check_model(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    """Raises UserError if a checkpoint is obviously of another model than this Hugging Face config says."""
    saved = checkpoint.manifest.model
    for key in _SHAPE_KEYS:
        if key in saved and key in config and saved[key] != config[key]:
            way_out = "give the same model, or another checkpoint"
            if key == "vocab_size":
                way_out += (
                    "; to add tokens to what was trained, `lemix checkpoint export` it, and give that as model.path with "
                    "model.resize: true"
                )
            raise UserError(
                f"{KEY}: {checkpoint.path} is of a model with {key} {saved[key]!r}, and this recipe's has "
                f"{config[key]!r}; {way_out}"
            )
