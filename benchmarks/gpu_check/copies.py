"""Copies between host and device, what pinning costs, and tensors to another rank and back."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from benchmarks.gpu_check.report import Report
from benchmarks.gpu_check.shapes import on_gpu, settle
from lemix_hpc.launch.local import environment, mpiexec_command

SIZES = (1 << 16, 1 << 20, 1 << 24, 1 << 28)


def check(device: str, report: Report) -> None:
    for nbytes in SIZES if on_gpu(device) else SIZES[:2]:
        report.figure(f"{nbytes} bytes, GB/s", copies(nbytes, device))
    if on_gpu(device):
        pinning(report)
    there_and_back(device, "host", "there and back, ms", report)
    if on_gpu(device):
        there_and_back(device, "ipc", "there and back by CUDA IPC, ms", report)


def there_and_back(device: str, way: str, name: str, report: Report) -> None:
    """Tensors of several sizes between two ranks, which compare them."""
    script = str(Path(__file__).with_name("message_ranks.py"))
    command = mpiexec_command(2, [sys.executable, "-m", "mpi4py", script, device, way])
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    report.expect(done.returncode == 0, f"two ranks ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    if done.returncode == 0:
        report.figure(name, json.loads(done.stdout.strip().splitlines()[-1]))


def copies(nbytes: int, device: str) -> dict[str, float]:
    pinned = torch.ones(nbytes, dtype=torch.uint8, pin_memory=on_gpu(device))
    pageable = torch.ones(nbytes, dtype=torch.uint8)
    there, other = (torch.ones(nbytes, dtype=torch.uint8, device=device) for _ in range(2))
    ways: dict[str, Callable[[], object]] = {
        "pinned to device": lambda: there.copy_(pinned, non_blocking=True),
        "device to pinned": lambda: pinned.copy_(there, non_blocking=True),
        "pageable to device": lambda: there.copy_(pageable),
        "device to pageable": lambda: pageable.copy_(there),
        "within the device": lambda: there.copy_(other),
    }
    return {name: nbytes / seconds(copy, device) / 1e9 for name, copy in ways.items()}


def seconds(call: Callable[[], object], device: str) -> float:
    times = []
    for _ in range(6):
        settle(device)
        began = time.perf_counter()
        call()
        settle(device)
        times.append(time.perf_counter() - began)
    return median(times[1:])


def pinning(report: Report) -> None:
    """Milliseconds to get 64 MiB of pinned memory, for the first time and again."""
    took = []
    for _ in range(3):
        began = time.perf_counter()
        memory = torch.empty(1 << 26, dtype=torch.uint8, pin_memory=True)
        took.append(1e3 * (time.perf_counter() - began))
        del memory
    report.figure("pin 64 MiB, ms", took)
