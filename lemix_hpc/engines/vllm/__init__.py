"""Stages that vLLM serves on, and that train the very weights it serves.

Only here is vllm imported. Importing this package is cheap; its modules bring in torch and vllm.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.vllm.environment import prepare, runner_refusal

if TYPE_CHECKING:
    from lemix_hpc.engines.vllm.lone_stage import LoneStage
    from lemix_hpc.engines.vllm.stage import VllmStage


def build_stage(recipe: Recipe, *, node: int, stage: int, device: str, meeting: Path | None) -> VllmStage:  # noqa: ARG001
    """See `lemix_hpc.engines.vllm.build.build_stage`. Raises UserError where vLLM cannot be used, too."""
    assert meeting is not None, "a node's ranks meet before its engines are built"
    prepare()
    if refused := runner_refusal(recipe):
        raise UserError(refused)
    from lemix_hpc.engines.vllm import build

    return build.build_stage(recipe, stage=stage, device=device, meeting=meeting)


def build_lone_stage(recipe: Recipe, *, stage: int, device: str, meeting: Path) -> LoneStage:
    """See `lemix_hpc.engines.vllm.build.build_lone_stage`. Raises UserError where vLLM cannot be used, too."""
    prepare()
    from lemix_hpc.engines.vllm import build

    return build.build_lone_stage(recipe, stage=stage, device=device, meeting=meeting)
