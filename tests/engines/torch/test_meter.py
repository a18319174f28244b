"""The meter of a GPU, on one that is pretended."""

import pytest
import torch

from lemix_hpc.engines.torch.meter import CudaMeter


class PretendedGpu:
    """80 bytes, of which somebody else has 5 and this process's context 2."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reserved = self.most = self.allocated = 0
        self.outside = 7
        for name in ("empty_cache", "reset_peak_memory_stats"):
            monkeypatch.setattr(torch.cuda, name, lambda *_: self.trim())
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (80 - self.outside - self.reserved, 80))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: self.reserved)
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: self.most)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: self.allocated)

    def trim(self) -> None:
        self.most = self.reserved

    def use(self, nbytes: int, taken: int) -> None:
        self.allocated = max(self.allocated, nbytes)
        self.reserved = taken
        self.most = max(self.most, taken)


def test_the_peak_is_what_is_missing_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, meter = PretendedGpu(monkeypatch), CudaMeter("cuda:0")
    meter.reset_peak()
    assert meter.peak() == 7, "the context and others"
    gpu.use(10, taken=12)
    assert meter.peak() == 19, "fragments count"
    gpu.outside += 4  # a captured graph, or a communicator
    assert meter.peak() == 23
    gpu.use(0, taken=3)
    assert meter.peak() == 23
    meter.reset_peak()
    assert meter.peak() == 14
