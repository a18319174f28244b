"""Half layers of an 8B model, forward and backward: how long one takes, and what waiting after each costs.

`free` launches all pieces and waits once. `paced` waits after every piece. `ahead` is what training does: a piece is launched
while the device runs the one before it, so that it always has something to do.
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
from lemix_hpc.engines.torch.chunked_loss import HeadGradients
from lemix_hpc.engines.torch.gradients import GroupGradients
from lemix_hpc.engines.torch.micro_batch import Segment
from lemix_hpc.engines.torch.training_queue import TrainingQueue, training_queue

REPEATS = 5


def check(device: str, report: Report) -> None:
    layers = 8 if on_gpu(device) else 2
    module = middle_stage(device, layers)
    report.figure("layers", layers)
    for tokens in (128, 256, 512, 1024, 2048, 4096) if on_gpu(device) else (16, 32):
        report.figure(f"{tokens} tokens, ms", measure(module, tokens, device))
    if on_gpu(device):
        report.figure("peak_gb", torch.cuda.max_memory_allocated() / 1e9)


def measure(module: Any, tokens: int, device: str) -> dict[str, Any]:
    entry = torch.randn(1, tokens, module.width, dtype=dtype(device), device=device)
    grad = torch.randn_like(entry)
    found: dict[str, Any] = {}
    for name, drive in (("free", free), ("paced", paced), ("ahead", ahead)):
        forwards, backwards, launches = [], [], []
        for repeat in range(REPEATS + 2):
            gradients = GroupGradients(list(module.parameters()))
            segments: list[Segment | HeadGradients] = []
            forward, launch = timed(drive, passes.forward(module, entry, None, segments), device)
            backward, _ = timed(
                drive,
                passes.backward(segments, passes.Backward(grad), lambda p, g, into=gradients: into.add(0, p, g)),
                device,
            )
            if repeat >= 2:
                forwards.append(forward)
                backwards.append(backward)
                launches.append(launch)
        count = len(module.blocks)
        found[name] = {"forward": median(forwards) / count, "backward": median(backwards) / count}
        if name == "free":
            found["launching a forward"] = median(launches) / count
    for way in ("forward", "backward"):
        for name in ("paced", "ahead"):
            found[f"gap of a {way}, {name}"] = found[name][way] - found["free"][way]
    return found


def timed(drive: Callable[[Work[Any], str], Iterator[None]], work: Work[Any], device: str) -> tuple[float, float]:
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
