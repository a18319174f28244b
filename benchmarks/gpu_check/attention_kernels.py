"""Which kernels attention with grouped heads gets, in both types, and what repeating keys and values would change."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu_check.report import Report
from benchmarks.gpu_check.shapes import on_gpu, settle
from lemix_hpc.engines.torch.attention import causal_attention

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def check(device: str, report: Report) -> None:
    heads, groups, size = (32, 8, 128) if on_gpu(device) else (4, 2, 16)
    for kind in (torch.bfloat16, torch.float32):
        for length in (512, 2048) if on_gpu(device) else (32,):
            query = torch.randn(1, heads, length, size, dtype=kind, device=device, requires_grad=True)
            key, value = (
                torch.randn(1, groups, length, size, dtype=kind, device=device, requires_grad=True) for _ in range(2)
            )
            name = f"{str(kind).removeprefix('torch.')}, {length}"
            found: dict[str, object] = {}

            def ours(query=query, key=key, value=value) -> torch.Tensor:  # type: ignore[no-untyped-def]
                return causal_attention(query, key, value, size**-0.5, None)

            def repeated(query=query, key=key, value=value) -> torch.Tensor:  # type: ignore[no-untyped-def]
                keys, values = (each.repeat_interleave(heads // groups, dim=1) for each in (key, value))
                return scaled_dot_product_attention(query, keys, values, is_causal=True, scale=size**-0.5)

            found["ours"] = cost(ours, device)
            found["repeated"] = cost(repeated, device)
            if on_gpu(device):
                found["kernels"] = kernels(ours)
                found["kernels, repeated"] = kernels(repeated)
                for backend, choice in BACKENDS.items():
                    try:
                        with sdpa_kernel([choice]):
                            found[backend] = cost(ours, device)
                    except RuntimeError as error:
                        found[backend] = str(error).splitlines()[0][:80]
            report.figure(name, found)


def cost(attend: Callable[[], torch.Tensor], device: str) -> dict[str, float]:
    """Milliseconds of a forward, and with its backward; and the memory that they add."""
    forwards, boths = [], []
    grad = torch.ones_like(attend())
    if on_gpu(device):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    for _ in range(7):
        settle(device)
        began = time.perf_counter()
        output = attend()
        settle(device)
        forwards.append(1e3 * (time.perf_counter() - began))
        torch.autograd.backward(output, grad)
        settle(device)
        boths.append(1e3 * (time.perf_counter() - began))
    found = {"forward": median(forwards), "both": median(boths)}
    if on_gpu(device):
        found["peak_mb"] = (torch.cuda.max_memory_allocated() - before) / 1e6
    return found


def kernels(attend: Callable[[], torch.Tensor]) -> list[str]:
    """What runs on the device, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        output = attend()
        torch.autograd.backward(output, torch.ones_like(output))
        torch.cuda.synchronize()
    events = [event for event in seen.key_averages() if event.self_device_time_total > 0]
    events.sort(key=lambda event: -event.self_device_time_total)
    return [f"{event.key[:90]} {event.self_device_time_total / 1e3:.3f} ms" for event in events[:6]]
