"""How long an optimizer step keeps requests waiting: its stretches with and without stops, in every mode of DeepSpeed.

    OMP_NUM_THREADS=1 python benchmarks/optimizer_step.py
    OMP_NUM_THREADS=1 python benchmarks/optimizer_step.py --width 768 --layers 12 --steps 50

Steps by made-up gradients of a model with the matrices of a Llama. Without stops, preparation and publication are one stretch;
with stops, a request waits for one piece of the preparation or for the publication at most. What comes before, the norm of the
gradient, is in all modes the same, and has stops as well. All times are milliseconds.

The last line is what publication would take if the weights could move: vLLM's parameters and ours are given the memory that the
new values are in already. Captured CUDA graphs hold addresses, so they cannot.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lemix_hpc.config.training_section import Training
from lemix_hpc.engines.protocol import Work
from lemix_hpc.engines.torch.gradients import GroupGradients
from lemix_hpc.engines.torch.optimizer import StageOptimizer

MODES = [(dtype, *mode) for dtype in ("float32", "bfloat16") for mode in ((0, False), (1, False), (1, True))]
VOCABULARY = 8000


def model(width: int, layers: int) -> nn.Module:
    """Parameters in the shapes of a Llama's; nothing is computed with them."""
    inner = 8 * width // 3
    shapes = [(width, width)] * 4 + [(inner, width)] * 2 + [(width, inner)]
    matrices = [nn.Linear(cols, rows, bias=False) for _ in range(layers) for rows, cols in shapes]
    norms = [nn.LayerNorm(width, bias=False) for _ in range(2 * layers + 1)]
    return nn.ModuleList([nn.Embedding(VOCABULARY, width), *matrices, *norms])


def milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def pieces_of(work: Work[Any]) -> list[float]:
    """Milliseconds of each piece."""
    stretches, ended = [], False
    while not ended:
        start = time.perf_counter()
        ended = next(work, "end") == "end"
        stretches.append(1e3 * (time.perf_counter() - start))
    return stretches


def norms(module: nn.Module, steps: int) -> tuple[list[float], list[float]]:
    """Pieces of the norms of gradients, and whole norms."""
    pieces, wholes = [], []
    parameters = list(module.parameters())
    gradients = GroupGradients(parameters)
    for parameter in parameters:
        gradients.add(0, parameter, torch.randn(parameter.shape))
    for _ in range(steps):
        stretches = pieces_of(gradients.norm(0))
        pieces += stretches
        wholes.append(sum(stretches))
    return pieces, wholes


def measure(module: nn.Module, optimizer: StageOptimizer, steps: int) -> tuple[list[float], list[float], list[float]]:
    """Pieces of the preparations, whole preparations, and publications, without the first step, which makes the state."""
    pieces, wholes, publications = [], [], []
    for step in range(steps + 1):
        grads = [torch.randn(parameter.shape) for parameter in module.parameters()]
        stretches = pieces_of(optimizer.prepare(grads, 1.0))
        publication = milliseconds(optimizer.publish)
        if step:
            pieces += stretches
            wholes.append(sum(stretches))
            publications.append(publication)
    return pieces, wholes, publications


def swaps(module: nn.Module, steps: int) -> list[float]:
    """Publications by views of other memory, of the trained parameters and of those that are served."""
    trained, served = list(module.parameters()), [parameter.detach() for parameter in module.parameters()]
    found = []
    for _ in range(steps):
        new = [torch.randn_like(parameter) for parameter in trained]

        def swap(values: list[torch.Tensor] = new) -> None:
            for mine, theirs, value in zip(trained, served, values, strict=True):
                mine.data = value
                theirs.data = value

        found.append(milliseconds(swap))
    return found


def summary(values: list[float]) -> str:
    return f"{statistics.median(values):8.2f} {max(values):8.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    count = sum(parameter.numel() for parameter in model(args.width, args.layers).parameters())
    print(f"{count / 1e6:.1f} million parameters, {torch.get_num_threads()} threads; median and largest, ms")
    print(f"{'':28}{'one piece':>17} {'publication':>17} {'without stops':>17}")
    pieces, wholes = norms(model(args.width, args.layers), args.steps)
    print(f"{'norm of the gradient':28}{summary(pieces)} {'':17} {summary(wholes)}")
    for dtype, zero, offload in MODES:
        module = model(args.width, args.layers).to(getattr(torch, dtype))
        training = Training(zero_stage=zero, offload_optimizer=offload, weight_decay=0.1)  # type: ignore[arg-type]
        optimizer = StageOptimizer(module, training)
        pieces, wholes, publications = measure(module, optimizer, args.steps)
        optimizer.close()
        steps = [a + b for a, b in zip(wholes, publications, strict=True)]
        name = f"{dtype}, ZeRO {zero}{', offload' * offload}"
        print(f"{name:28}{summary(pieces)} {summary(publications)} {summary(steps)}")
    print(f"{'views of other memory':28}{'':17} {summary(swaps(model(args.width, args.layers), args.steps))}")


if __name__ == "__main__":
    main()
