"""Serving through a captured CUDA graph, on weights that training shares with it: what is published must be what is served."""

from __future__ import annotations

import copy

import torch

from benchmarks.gpu_check.report import Report, SkippedError
from benchmarks.gpu_check.shapes import TINY, middle_stage, on_gpu
from lemix_hpc.config.training_section import Training
from lemix_hpc.engines.torch import micro_batch as passes
from lemix_hpc.engines.torch.optimizer import StageOptimizer
from lemix_hpc.engines.vllm.aliasing import check_sharing, share


def check(device: str, report: Report) -> None:
    if not on_gpu(device):
        raise SkippedError("a CPU captures no graphs")
    for zero, offload in ((1, False), (1, True), (0, False)):
        name = f"ZeRO {zero}{', offload' * offload}"
        replay(device, Training(learning_rate=1e-2, zero_stage=zero, offload_optimizer=offload), name, report)  # type: ignore[arg-type]


def replay(device: str, training: Training, name: str, report: Report) -> None:
    trained = middle_stage(device, 2, like=TINY)
    served = middle_stage(device, 2, like=TINY)
    optimizer = StageOptimizer(trained, training)
    share(served, trained)
    entry = torch.randn(1, 32, TINY["hidden_size"], dtype=torch.bfloat16, device=device)  # type: ignore[call-overload]

    def forward() -> torch.Tensor:
        work = passes.forward(served, entry, None, None)
        while True:
            try:
                next(work)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        for _ in range(3):
            forward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = forward()
    graph.replay()
    old = output.clone()
    report.expect(torch.equal(old, forward()), f"{name}: a captured forward differs from a plain one")
    for step in range(3):
        grads = [torch.randn(parameter.shape, device=device) for parameter in trained.parameters()]
        for _ in optimizer.prepare(grads, 1.0):
            pass
        optimizer.publish()
        graph.replay()
        new = output.clone()
        report.expect(not torch.equal(new, old), f"{name}: replay {step} shows old weights")
        report.expect(torch.equal(new, forward()), f"{name}: replay {step} differs from a plain forward")
        fresh = copy.deepcopy(entry)
        report.expect(bool(torch.isfinite(fresh).all()), f"{name}: not finite")
        old = new
    check_sharing(served, trained)
    report.figure(name, "replays follow publications")
    optimizer.close()
