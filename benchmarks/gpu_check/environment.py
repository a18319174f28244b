"""What this machine has: versions, the driver, what MPI can send, and what importing DeepSpeed costs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.gpu_check.report import Report
from benchmarks.gpu_check.shapes import on_gpu

PACKAGES = (
    *(
        "torch",
        "triton",
        "transformers",
        "huggingface-hub",
        "tokenizers",
        "safetensors",
        "deepspeed",
        "mpi4py",
        "openmpi",
    ),
    *("numpy", "numba", "llvmlite", "scipy", "msgspec", "pydantic", "pydantic-core", "typer", "rich", "submitit"),
    *("pytest", "pytest-xdist", "hypothesis", "vllm", "nvidia-nccl-cu13"),
)
PROBE = """
import time; began = time.monotonic()
import deepspeed.ops; print(time.monotonic() - began)
began = time.monotonic(); dict(deepspeed.ops.__compatible_ops__); print(time.monotonic() - began)
"""


def check(device: str, report: Report) -> None:
    report.figure("python", sys.version.split()[0])
    report.figure("packages", {name: version(name) for name in PACKAGES})
    report.figure("host", f"{platform.platform()}, {os.cpu_count()} cores, {memory_gb():.0f} GB")
    shm = os.statvfs("/dev/shm")
    report.figure("shm_gb", shm.f_bavail * shm.f_frsize / 1e9)
    if on_gpu(device):
        gpu(device, report)
    mpi(report)
    probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False, timeout=50)
    report.expect(probe.returncode == 0, f"DeepSpeed cannot be imported: {probe.stderr[-800:]}")
    if probe.returncode == 0:
        imported, probed = map(float, probe.stdout.split()[-2:])
        report.figure("deepspeed_import_s", imported)
        report.figure("deepspeed_probe_s", probed)


def gpu(device: str, report: Report) -> None:
    report.expect(torch.cuda.is_available(), "torch sees no GPU")
    report.figure("cuda", torch.version.cuda)
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    report.figure("gpu", f"{properties.name}, {properties.multi_processor_count} multiprocessors, {total / 1e9:.1f} GB")
    report.figure("context_gb", (total - free) / 1e9)
    report.figure("uuid", str(properties.uuid))
    names = "driver_version,compute_mode,mig.mode.current,persistence_mode,clocks.sm,clocks.max.sm,temperature.gpu"
    query = ["nvidia-smi", f"--query-gpu={names}", "--format=csv,noheader"]
    report.figure("nvidia_smi", subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip())
    report.figure("devices", sorted(str(path) for path in Path("/dev").glob("nvidia*")))
    for what in ("CUDA_VISIBLE_DEVICES", "CUDA_HOME", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        if what in os.environ:
            report.figure(what, os.environ[what])
    began = time.monotonic()
    torch.ones(8, device=device).sum().item()
    report.figure("first_kernel_s", time.monotonic() - began)


def mpi(report: Report) -> None:
    from mpi4py import MPI

    from lemix_hpc.engines.torch.device_buffers import library_takes_device_memory

    report.figure("mpi", MPI.Get_library_version().partition(",")[0].strip())
    report.figure("mpi_says_it_sends_device_memory", library_takes_device_memory())


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def memory_gb() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
