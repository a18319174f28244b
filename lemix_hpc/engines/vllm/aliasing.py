"""One copy of the weights: vLLM's parameters on the storage of those that are trained."""

from __future__ import annotations

import torch
from torch import nn

from lemix_hpc.config.errors import UserError


def share(served: nn.Module, trained: nn.Module) -> None:
    """Let vLLM's model use the trained parameters' storage, and prove that it does. vLLM's own storage becomes free.

    Call it once the trained parameters are where they will stay, so after DeepSpeed has been initialised. Raises UserError
    if the two do not fit together.
    """
    parameters = _same_names(served, trained)
    for name, parameter in served.named_parameters():
        own = parameters[name]
        _check(
            name,
            parameter.shape == own.shape,
            f"has the shape {tuple(parameter.shape)} in vLLM, {tuple(own.shape)} here",
        )
        _check(name, parameter.dtype == own.dtype, f"is {parameter.dtype} in vLLM, {own.dtype} here")
        parameter.data = own.data
    check_sharing(served, trained)


@torch.no_grad()
def check_sharing(served: nn.Module, trained: nn.Module) -> None:
    """Prove that both models read the same memory. Raises UserError naming the parameter that they do not share."""
    parameters = _same_names(served, trained)
    for name, parameter in served.named_parameters():
        own = parameters[name]
        same = (own.data_ptr(), own.shape, own.stride()) == (parameter.data_ptr(), parameter.shape, parameter.stride())
        _check(name, same, "lies elsewhere in memory than the trained one")
        _check(name, _is_read_through(own, parameter), "does not follow a change of the trained one")


def _is_read_through(written: torch.Tensor, read: torch.Tensor) -> bool:
    """Whether the last value written through one is read through the other. It is put back."""
    element = (-1,) * written.dim()
    before = written[element].clone()
    written[element] = before + 1
    followed = bool(read[element] == written[element]) and bool(written[element] != before)
    written[element] = before
    return followed


def _same_names(served: nn.Module, trained: nn.Module) -> dict[str, nn.Parameter]:
    parameters = dict(trained.named_parameters())
    for name in sorted(parameters.keys() ^ {name for name, _ in served.named_parameters()}):
        _check(name, False, "belongs to only one of them")
    return parameters


def _check(name: str, holds: bool, otherwise: str) -> None:
    if not holds:
        raise UserError(
            f"vLLM and training cannot share the weights of this model: {name} {otherwise}. Set engine.vllm.weights: copy."
        )
