"""AdamW in two parts: a long one that can stop between any two chunks, and a short one that makes the result count."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch.optim.adamw import adamw

from lemix_hpc.engines.protocol import Work

_LANES = 64
"""Torch's kernels compute the elements that do not fill a vector in another way: chunks are multiples of so many, so that
cutting changes no bit."""


class ChunkedAdamW(torch.optim.Optimizer):
    """`torch.optim.AdamW(fused=True)` to the last bit, with the same state, for one group of float32 parameters.

    `prepare` does the work; the moments advance at once. `step` publishes: until then the parameters keep their values,
    and the new ones lie where the gradients were. With `in_place` the parameters advance during `prepare`, and nothing is
    left to publish: for master copies that nobody reads before they are copied into the weights. With `handed_back` the new
    values also lie where the gradients were, on their device.
    """

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float,
        not_decayed: Collection[int] = (),
        chunk: int,
        in_place: bool,
        handed_back: bool = False,
    ) -> None:
        """`chunk`: elements of about one piece of work. `not_decayed`: positions of the gradients whose weights are not."""
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._not_decayed = not_decayed
        self._chunk = -(-chunk // _LANES) * _LANES
        self._in_place = in_place
        self._handed_back = handed_back or not in_place
        self._new: list[tuple[torch.Tensor, torch.Tensor]] = []

    @torch.no_grad()
    def prepare(self, grads: Sequence[torch.Tensor], scale: float) -> Work[None]:
        """One update by `scale` times the gradients, which are used up.

        `grads` are contiguous float32 tensors in the order of the parameters. DeepSpeed may have put one flat tensor in
        the place of the parameters; then they are its parts, and what it has at its end for alignment stays.
        """
        counts = {parameter: self._started(parameter) for parameter in self.param_groups[0]["params"]}
        since_stop = 0
        for at, (parameter, start, grad) in enumerate(self._parts(grads)):
            decay = 0.0 if at in self._not_decayed else self.param_groups[0]["weight_decay"]
            for first in range(0, grad.numel(), self._chunk):
                piece = slice(first, first + self._chunk)
                self._advance(parameter, start, grad.view(-1)[piece], first, counts[parameter], scale, decay)
                since_stop += self._chunk if grad.numel() > self._chunk else grad.numel()
                if since_stop >= self._chunk:
                    since_stop = 0
                    yield
            if not self._in_place:
                self._new.append((parameter, grad.view_as(parameter)))
        for count in counts.values():
            count.add_(1)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Publish what was prepared, if anything was."""
        if self._new:
            torch._foreach_copy_([parameter for parameter, _ in self._new], [new for _, new in self._new])
        self._new = []

    @torch.no_grad()
    def assign(self, weights: Sequence[torch.Tensor]) -> None:
        """Give the parameters these values, of any type, in order; the moments stay."""
        for held, weight in zip(self.held(weights), weights, strict=True):
            held.copy_(weight.view(-1))

    def held(self, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The parameters as flat views, one for each of these tensors, which have their sizes and order."""
        return [
            parameter.detach().view(-1)[start : start + weight.numel()]
            for parameter, start, weight in self._parts(weights)
        ]

    def moments(self, weights: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Both moments of each of these tensors, as `held`."""
        for parameter in self.param_groups[0]["params"]:
            self._started(parameter)
        return [
            (self._moment("exp_avg", parameter, start, weight), self._moment("exp_avg_sq", parameter, start, weight))
            for parameter, start, weight in self._parts(weights)
        ]

    @property
    def updates(self) -> int:
        """How many updates the moments have seen."""
        return int(self._started(self.param_groups[0]["params"][0]))

    @updates.setter
    def updates(self, count: int) -> None:
        for parameter in self.param_groups[0]["params"]:
            self._started(parameter).fill_(count)

    def _moment(self, name: str, parameter: torch.Tensor, start: int, weight: torch.Tensor) -> torch.Tensor:
        moment: torch.Tensor = self.state[parameter][name].view(-1)[start : start + weight.numel()]
        return moment

    def _started(self, parameter: torch.Tensor) -> torch.Tensor:
        """The count of updates of a parameter, whose state is made here when it has none."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        count: torch.Tensor = state["step"]
        return count

    def _parts(self, grads: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, int, torch.Tensor]]:
        """Each gradient with the tensor that holds its parameter, and where in it that starts."""
        held = iter(self.param_groups[0]["params"])
        parameter, start = next(held), 0
        for grad in grads:
            if start + grad.numel() > parameter.numel():
                parameter, start = next(held), 0
            yield parameter, start, grad
            start += grad.numel()

    def _advance(
        self,
        parameter: torch.Tensor,
        start: int,
        grad: torch.Tensor,
        first: int,
        count: torch.Tensor,
        scale: float,
        weight_decay: float,
    ) -> None:
        """Update one chunk: `grad` is the part of a gradient from its element `first` on."""
        place = slice(start + first, start + first + grad.numel())
        state, group = self.state[parameter], self.param_groups[0]
        weight = parameter.detach().view(-1)[place]
        target = weight if self._in_place else weight.clone()
        if scale < 1.0:
            grad.mul_(scale)
        adamw(
            [target],
            [_brought(grad, target.device)],
            [state["exp_avg"].view(-1)[place]],
            [state["exp_avg_sq"].view(-1)[place]],
            [],
            [count.clone()],
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=weight_decay,
            eps=group["eps"],
        )
        if self._handed_back:
            grad.copy_(target)


def _brought(grad: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A gradient where its parameter is. Through pinned memory, which is several times as fast as any other."""
    if grad.device == device:
        return grad
    return torch.empty_like(grad, device=device, pin_memory=True).copy_(grad)
