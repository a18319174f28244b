"""Weights under Hugging Face's names, as vLLM's own loaders take them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from lemix_hpc.engines.torch.llama import LlamaStage
from lemix_hpc.engines.torch.weights import WeightSource
from lemix_hpc.engines.vllm.module import FusedLlamaStage

Named = Iterator[tuple[str, torch.Tensor]]


def fill(served: Any, source: WeightSource, config: Any, layers: range, *, first: bool, last: bool) -> None:
    """Give vLLM's stage the weights that the torch engine's stage would start from, bit by bit."""
    with torch.device("meta"):
        stage = LlamaStage(config, layers, first=first, last=last, device=torch.device("cpu"))
    # vLLM would round them, too, but with a warning for each.
    dtype = next(served.parameters()).dtype
    served.load_weights(
        (name, source.read(name, parameter.shape).to(dtype)) for name, parameter in stage.named_parameters()
    )


def unfused(trained: FusedLlamaStage) -> Named:
    """The parameters cut into those of Hugging Face. Views, not copies."""
    for name, parameter in trained.named_parameters():
        yield from trained.saved_parts(name, parameter.detach())


class CopiedWeights:
    """vLLM's own copy of the weights, brought up to the trained ones on vLLM's own way."""

    def __init__(self, served: Any, trained: FusedLlamaStage) -> None:
        self._served = served
        self._trained = trained

    def publish(self) -> None:
        """Serve the trained weights as they are now."""
        with torch.no_grad():
            self._served.load_weights(unfused(self._trained))
