"""Stages that compute with Hugging Face decoder layers in PyTorch and train through DeepSpeed.

Importing this package is cheap; building a stage brings in torch and transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lemix_hpc.config.recipe import Recipe

if TYPE_CHECKING:
    from lemix_hpc.engines.torch.stage import TorchStage


def build_stage(recipe: Recipe, *, node: int, stage: int, device: str, meeting: Path | None) -> TorchStage:  # noqa: ARG001
    """See `lemix_hpc.engines.torch.build.build_stage`; all nodes are alike, and their ranks need not meet."""
    from lemix_hpc.engines.torch import build

    return build.build_stage(recipe, stage=stage, device=device)
