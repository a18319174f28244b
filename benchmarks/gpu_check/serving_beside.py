"""How long requests wait beside training on one stage of an 8B model, by how training is paced.

Each request is a batch of decodes, at a random time. `paced`: training on the same stream, waited for after every piece. `low
priority`: training on a stream of low priority, one piece ahead.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_check.report import Report
from benchmarks.gpu_check.shapes import middle_stage, on_gpu, settle, stage_of
from lemix_hpc.engines.protocol import Payload, ServeBatch, ServeSequence
from lemix_hpc.engines.torch import micro_batch as passes
from lemix_hpc.engines.torch.gradients import GroupGradients
from lemix_hpc.engines.torch.micro_batch import Segment

MEAN_GAP_S = 0.025


def check(device: str, report: Report) -> None:
    gpu = on_gpu(device)
    module = middle_stage(device, 8 if gpu else 2)
    stage = stage_of(module, None)
    requests, tokens, context = (120, 2048, 512) if gpu else (5, 32, 16)
    for slot in range(8):
        serve(stage, [ServeSequence(slot, context, 0, True, [])], stage.sample(1, context))
    settle(device)
    side = torch.cuda.Stream(priority=0) if gpu else None
    front = torch.cuda.Stream(priority=-5) if gpu else None
    modes: dict[str, Callable[[], Iterator[bool]] | None] = {
        "alone": None,
        "paced": lambda: trained_paced(module, tokens, device),
        "low priority": lambda: trained_behind(module, tokens, device, side),
    }
    for name, training in modes.items():
        random.seed(1)
        report.figure(
            f"{name}, ms", latencies(stage, training, requests, context, front if name == "low priority" else None)
        )


def serve(stage: Any, sequences: list[ServeSequence], entry: Payload) -> None:
    for _ in stage.serve(ServeBatch(0, sequences), entry):
        pass


def latencies(
    stage: Any, training: Callable[[], Iterator[bool]] | None, requests: int, context: int, stream: Any
) -> dict[str, float]:
    """Milliseconds from a request's arrival until its batch is done, and pieces of training in a second."""
    decodes = [ServeSequence(slot, 1, context, True, []) for slot in range(8)]
    one = stage.sample(1, 8)
    began = time.perf_counter()
    due = began + random.expovariate(1 / MEAN_GAP_S)
    waits, pieces = [], 0
    work = iter(training()) if training is not None else None
    while len(waits) < requests:
        if work is not None:
            pieces += next(work)
        if time.perf_counter() < due:
            continue
        if stream is None:
            serve(stage, decodes, one)
            settle(str(stage._device))
        else:
            with torch.cuda.stream(stream):
                serve(stage, decodes, one)
            stream.synchronize()
        now = time.perf_counter()
        waits.append(1e3 * (now - due))
        due = max(now, due + random.expovariate(1 / MEAN_GAP_S))
    seconds = time.perf_counter() - began
    settle(str(stage._device))
    p50, p90, p99 = np.percentile(waits, [50, 90, 99])
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99), "pieces per second": pieces / seconds}


def endless(module: Any, tokens: int, device: str) -> Iterator[None]:
    """Micro-batches one after the other, a stop after every piece."""
    kind = next(module.parameters()).dtype
    entry = torch.randn(1, tokens, module.width, dtype=kind, device=device)
    grad = torch.randn_like(entry)
    while True:
        gradients, segments = GroupGradients(list(module.parameters())), list[Segment]()
        yield from passes.forward(module, entry, None, segments)
        yield from passes.backward(segments, grad, lambda p, g, into=gradients: into.add(0, p, g))


def trained_paced(module: Any, tokens: int, device: str) -> Iterator[bool]:
    for _ in endless(module, tokens, device):
        settle(device)
        yield True


def trained_behind(module: Any, tokens: int, device: str, stream: Any) -> Iterator[bool]:
    """Each step launches a piece (True), or finds that the one before the last has not ended (False)."""
    if not on_gpu(device):
        for _ in endless(module, tokens, device):
            yield True
        return
    with torch.cuda.stream(stream):
        work = endless(module, tokens, device)
    before = None
    while True:
        with torch.cuda.stream(stream):
            next(work)
            event = torch.cuda.Event()
            event.record(stream)
        while before is not None and not before.query():
            yield False
        before = event
        yield True
