"""Which parameters are not decayed."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch

from lemix_hpc.config.training_section import ParameterKind

_EMBEDDINGS = frozenset({"embed_tokens", "wte", "wpe"})
"""The modules that hold embeddings of tokens and positions; a head that is tied to one is that one."""


def kind_of(name: str, parameter: torch.Tensor) -> ParameterKind | None:
    """What kind a parameter is by its name in the whole model and its shape, None for a matrix of a layer or an untied head."""
    if name.rpartition(".")[2] == "bias":
        return "biases"
    if parameter.ndim == 1:
        return "norms"
    return "embeddings" if _EMBEDDINGS & set(name.split(".")) else None


def not_decayed(named: Iterable[tuple[str, torch.Tensor]], kinds: Collection[ParameterKind]) -> frozenset[int]:
    """Positions of the parameters that are of one of these kinds."""
    return frozenset(at for at, (name, parameter) in enumerate(named) if kind_of(name, parameter) in kinds)
