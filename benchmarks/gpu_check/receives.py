"""Does memory to receive into have kernels queued that still write to it? MPI and device copies do not wait for streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu_check.report import Report, SkippedError
from benchmarks.gpu_check.shapes import on_gpu
from lemix_hpc.engines.torch.payloads import Wire

NBYTES = 64 << 20
SLEEP_CYCLES = 100_000_000
"""About 50 ms of the device."""


def check(device: str, report: Report) -> None:
    if not on_gpu(device):
        raise SkippedError("a CPU has no queue")
    place = torch.device(device)
    plain = damaged(place, lambda: torch.empty(NBYTES, dtype=torch.uint8, device=place))
    report.figure("bytes_damaged_in_a_plain_buffer", plain)
    ours = damaged(place, lambda: Wire(place, device_buffers=True).buffer(NBYTES))
    report.figure("bytes_damaged_in_ours", ours)
    report.expect(ours == 0, f"{ours} of {NBYTES} received bytes were overwritten by kernels that were queued before")


def damaged(place: torch.device, allocate: Callable[[], Any]) -> int:
    """Bytes that differ after a receive into a fresh buffer while kernels with freed temporaries are queued."""
    pattern = torch.arange(NBYTES, device=place).to(torch.uint8)
    other = torch.cuda.Stream(place)  # type: ignore[no-untyped-call]
    for cycles in (1, SLEEP_CYCLES):  # the first time kernels are loaded and memory is got, which waits for the device
        torch.cuda.synchronize()
        torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
        for value in range(3):
            temporary = torch.full((NBYTES,), value, dtype=torch.uint8, device=place)
            del temporary
        buffer = allocate()
        with torch.cuda.stream(other):
            buffer.copy_(pattern)
        other.synchronize()
        torch.cuda.synchronize()
        wrong = int((buffer != pattern).sum())
        del buffer
    return wrong
