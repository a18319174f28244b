"""The engines that a recipe can name in `engine.kind`, and what the rest of the project asks about them.

This is the registry: an engine is its folder and one entry here (docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineKind:
    """What an engine is.

    `package` is the import path of the module or package whose `build_stage` builds its stages: see
    `lemix_hpc.engines.build.build_engine`. An engine that `computes` has weights and takes tokens: it needs a model, a device
    and text to train on, and a run measures its times at the start. One that does not takes lengths alone, and its times come
    from a coefficient file. One that `has_scheduler` forms its batches itself, instead of the node's leader. One that
    `serves_http` answers calls of the OpenAI API. `families`: the Hugging Face model types that it takes, None for all that are
    supported.
    """

    package: str
    computes: bool
    has_scheduler: bool = False
    serves_http: bool = False
    families: tuple[str, ...] | None = None


ENGINE_KINDS: Mapping[str, EngineKind] = {
    "emulated": EngineKind("lemix_hpc.engines.emulated", computes=False),
    "torch": EngineKind("lemix_hpc.engines.torch", computes=True),
    "vllm": EngineKind(
        "lemix_hpc.engines.vllm",
        computes=True,
        has_scheduler=True,
        serves_http=True,
        families=("llama", "mistral", "qwen2"),
    ),
}
