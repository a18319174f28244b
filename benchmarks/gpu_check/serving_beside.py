"""How long requests wait beside training on one stage of an 8B model, by how training is paced.

Each request is a batch of decodes, at a random time. `paced`: training on the same stream, waited for after every piece.
`beside` is what a stage does: training on a stream of low priority, one piece ahead.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_check.report import Report
from benchmarks.gpu_check.shapes import middle_stage, on_gpu, settle, stage_of
from lemix_hpc.engines.protocol import Payload, ServeBatch, ServeSequence, Work
from lemix_hpc.engines.torch import micro_batch as passes
from lemix_hpc.engines.torch.chunked_loss import HeadGradients
from lemix_hpc.engines.torch.devices import take
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
    report.figure("alone, ms", latencies(stage, None, requests, context))
    report.figure("paced, ms", latencies(stage, trained_paced(module, tokens, device), requests, context))
    take(torch.device(device))
    beside = iter(Beside(stage, endless(module, tokens, device)))
    report.figure("beside, ms", latencies(stage, beside, requests, context))
    report.figure("alone at the end, ms", latencies(stage, None, requests, context))


def serve(stage: Any, sequences: list[ServeSequence], entry: Payload) -> None:
    for _ in stage.serve(ServeBatch(0, sequences), entry):
        pass


def latencies(stage: Any, training: Iterator[int] | None, requests: int, context: int) -> dict[str, float]:
    """Milliseconds from a request's arrival until its batch is done, and pieces of training in a second."""
    random.seed(1)
    decodes = [ServeSequence(slot, 1, context, True, []) for slot in range(8)]
    one = stage.sample(1, 8)
    began = time.perf_counter()
    due = began + random.expovariate(1 / MEAN_GAP_S)
    waits: list[float] = []
    pieces = 0
    while len(waits) < requests:
        if training is not None:
            pieces += next(training)
        if time.perf_counter() < due:
            continue
        serve(stage, decodes, one)
        if on_gpu(str(stage._device)):
            torch.cuda.current_stream().synchronize()
        now = time.perf_counter()
        waits.append(1e3 * (now - due))
        due = max(now, due + random.expovariate(1 / MEAN_GAP_S))
    seconds = time.perf_counter() - began
    settle(str(stage._device))
    p50, p90, p99 = np.percentile(waits, [50, 90, 99])
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99), "pieces per second": pieces / seconds}


def endless(module: Any, tokens: int, device: str) -> Work[None]:
    """Micro-batches one after the other, a stop after every piece."""
    kind = next(module.parameters()).dtype
    entry = torch.randn(1, tokens, module.width, dtype=kind, device=device)
    grad = torch.randn_like(entry)
    while True:
        gradients, segments = GroupGradients(list(module.parameters())), list[Segment | HeadGradients]()
        yield from passes.forward(module, entry, None, segments)
        yield from passes.backward(segments, passes.Backward(grad), functools.partial(gradients.add, 0))


def trained_paced(module: Any, tokens: int, device: str) -> Iterator[int]:
    for _ in endless(module, tokens, device):
        settle(device)
        yield 1


class Beside:
    """Training as a stage does it, a step at a time: how many pieces were launched in it, 0 while the device is busy."""

    def __init__(self, stage: Any, pieces: Work[None]) -> None:
        self._launched = 0
        self._work = stage._queue.work(self._counted(pieces), lambda result: result)

    def _counted(self, pieces: Work[None]) -> Work[None]:
        for _ in pieces:
            self._launched += 1
            yield

    def __iter__(self) -> Iterator[int]:
        for _ in self._work:
            launched, self._launched = self._launched, 0
            yield launched
