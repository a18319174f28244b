"""Optimizer steps of one stage of an 8B model: sizes of chunks, publication, and memory against what the docs say."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch

from benchmarks.gpu_check.report import Report
from benchmarks.gpu_check.shapes import middle_stage, on_gpu, settle
from lemix_hpc.config.training_section import Training
from lemix_hpc.engines.torch.optimizer import StageOptimizer

BYTES_PER_PARAMETER = {False: 18, True: 6}
"""On the device, gradient included; with `offload_optimizer`: weights and gradient."""


def check(device: str, report: Report) -> None:
    gpu = on_gpu(device)
    for offload, layers in ((False, 8 if gpu else 2), (True, 2)):
        name = "offload" if offload else "on the device"
        report.figure(name, measure(device, layers, offload, report))


def measure(device: str, layers: int, offload: bool, report: Report) -> dict[str, Any]:
    gpu = on_gpu(device)
    used = allocated(device)
    module = middle_stage(device, layers)
    count = sum(parameter.numel() for parameter in module.parameters())
    began = time.perf_counter()
    optimizer = StageOptimizer(module, Training(offload_optimizer=offload, zero_stage=1, learning_rate=1e-4))
    found: dict[str, Any] = {"parameters": count, "build_s": time.perf_counter() - began}
    settle(device)
    found["bytes_per_parameter_after_build"] = (allocated(device) - used) / count
    own = optimizer._adamw._chunk
    chunks = [own // 16, own // 2, own] if gpu else [own]
    for chunk in chunks:
        optimizer._adamw._chunk = chunk
        found[f"chunks of {chunk}, ms"] = steps(module, optimizer, device)
    if gpu:
        peak = (torch.cuda.max_memory_allocated() - used) / count
        found["peak_bytes_per_parameter"] = peak
        limit = 1.1 * BYTES_PER_PARAMETER[offload] + 0.5
        report.expect(
            peak < limit, f"{peak:.1f} bytes per parameter at the peak, more than {limit:.1f} (offload: {offload})"
        )
        found["reserved_gb"] = torch.cuda.memory_reserved() / 1e9
    optimizer.close()
    del module, optimizer
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return found


def steps(module: Any, optimizer: StageOptimizer, device: str, repeats: int = 3) -> dict[str, float]:
    wholes, pieces, publications = [], [], []
    for _ in range(repeats):
        grads = [1e-3 * torch.randn(p.shape, device=device) for p in module.parameters()]
        settle(device)
        began = before = time.perf_counter()
        for _ in optimizer.prepare(grads, 1.0):
            settle(device)
            now = time.perf_counter()
            pieces.append(1e3 * (now - before))
            before = now
        del grads
        settle(device)
        wholes.append(1e3 * (time.perf_counter() - began))
        began = time.perf_counter()
        optimizer.publish()
        settle(device)
        publications.append(1e3 * (time.perf_counter() - began))
    return {
        "preparation": median(wholes),
        "piece": median(pieces or wholes),
        "longest piece": max(pieces or wholes),
        "pieces": len(pieces) // repeats,
        "publication": median(publications),
    }


def allocated(device: str) -> int:
    return torch.cuda.memory_allocated() if on_gpu(device) else 0
