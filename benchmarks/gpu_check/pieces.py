"""Half layers of an 8B model, forward and backward: how long one takes, and what waiting after each costs.

`free` launches all pieces and waits once. `paced` waits after every piece. `ahead` is what training does: a piece is launched
while the device runs the one before it, so that it always has something to do. `graphs` is the same with every piece captured
as a CUDA graph, as `training.cuda_graphs` has it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch

from benchmarks.gpu_check.report import Report
from benchmarks.gpu_check.shapes import dtype, middle_stage, on_gpu, settle
from lemix_hpc.engines.protocol import Work
from lemix_hpc.engines.torch import micro_batch as passes
from lemix_hpc.engines.torch.blocks import RunBlock
from lemix_hpc.engines.torch.captured_blocks import CapturedBlocks, cuda_graph
from lemix_hpc.engines.torch.chunked_loss import HeadGradients
from lemix_hpc.engines.torch.gradients import GroupGradients
from lemix_hpc.engines.torch.micro_batch import Segment
from lemix_hpc.engines.torch.training_queue import TrainingQueue, training_queue

REPEATS = 5
Drive = Callable[[Work[Any], str], Iterator[None]]


def check(device: str, report: Report) -> None:
    layers = 8 if on_gpu(device) else 2
    module = middle_stage(device, layers)
    report.figure("layers", layers)
    for tokens in (128, 256, 512, 1024, 2048, 4096) if on_gpu(device) else (16, 32):
        report.figure(f"{tokens} tokens, ms", measure(module, tokens, device, report))
    if on_gpu(device):
        report.figure("peak_gb", torch.cuda.max_memory_allocated() / 1e9)


def measure(module: Any, tokens: int, device: str, report: Report) -> dict[str, Any]:
    entry = torch.randn(1, tokens, module.width, dtype=dtype(device), device=device)
    grad = torch.randn_like(entry)
    found: dict[str, Any] = {}
    results: dict[str, torch.Tensor] = {}
    ways: dict[str, tuple[Drive, CapturedBlocks | None]] = {
        "free": (free, None),
        "paced": (paced, None),
        "ahead": (ahead, None),
    }
    if on_gpu(device):
        before = torch.cuda.memory_allocated()
        ways["graphs"] = ahead, CapturedBlocks(module, 1, tokens, cuda_graph)
        found["gb of graphs"] = (torch.cuda.memory_allocated() - before) / 1e9
    for name, (drive, captured) in ways.items():
        forwards, backwards, launches = [], [], []
        for repeat in range(REPEATS + 2):
            gradients = GroupGradients(list(module.parameters()), borrowed=captured is not None)
            segments: list[Segment | HeadGradients] = []
            run_block: RunBlock | None = None if captured is None else captured.runner(repeat, entry)
            forward, launch = timed(drive, passes.forward(module, entry, None, segments, run_block=run_block), device)
            flow = passes.Backward(grad)
            backward, _ = timed(drive, passes.backward(segments, flow, functools.partial(gradients.add, 0)), device)
            if captured is not None:
                captured.release(repeat)
            if repeat >= 2:
                forwards.append(forward)
                backwards.append(backward)
                launches.append(launch)
        assert flow.flowing is not None, "the stage is not the first"
        results[name] = flow.flowing.clone()
        count = len(module.blocks)
        found[name] = {"forward": median(forwards) / count, "backward": median(backwards) / count}
        if name in ("free", "graphs"):
            found[f"launching a forward, {name}"] = median(launches) / count
    for way in ("forward", "backward"):
        for name in ("paced", "ahead"):
            found[f"gap of a {way}, {name}"] = found[name][way] - found["free"][way]
    if "graphs" in results:
        furthest = float((results["graphs"] - results["free"]).abs().max() / results["free"].abs().max())
        found["gradient by graphs, furthest"] = furthest
        report.expect(furthest < 0.02, f"{tokens} tokens: a gradient by graphs differs by {furthest:.2g}")
    return found


def timed(drive: Drive, work: Work[Any], device: str) -> tuple[float, float]:
    """Milliseconds until all is done, and until all was launched."""
    settle(device)
    began = time.perf_counter()
    for _ in drive(work, device):
        pass
    launched = time.perf_counter()
    settle(device)
    return 1e3 * (time.perf_counter() - began), 1e3 * (launched - began)


def free(work: Work[Any], _device: str) -> Iterator[None]:
    yield from work


def paced(work: Work[Any], device: str) -> Iterator[None]:
    for _ in work:
        if on_gpu(device):
            torch.cuda.current_stream().synchronize()
        yield


def ahead(work: Work[Any], device: str) -> Iterator[None]:
    yield from queue(device).work(work, lambda result: result)


@functools.cache
def queue(device: str) -> TrainingQueue:
    return training_queue(torch.device(device))
