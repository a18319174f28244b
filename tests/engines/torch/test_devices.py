import pytest
import torch

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Engine
from lemix_hpc.engines.torch.devices import choose_device, gpu_id, take


@pytest.mark.parametrize(("gpus", "expected"), [(1, ["cuda:0"] * 3), (4, ["cuda:0", "cuda:1", "cuda:2"])])
def test_gpus_are_dealt_out_in_order(monkeypatch: pytest.MonkeyPatch, gpus: int, expected: list[str]) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert [choose_device(Engine(), stage) for stage in range(3)] == expected
    assert choose_device(Engine(device="cpu"), 0) == "cpu"


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device(Engine(), 0) == "cpu"
    assert gpu_id("cpu") is None
    with pytest.raises(UserError, match="no GPU is visible"):
        choose_device(Engine(device="cuda"), 0)


class FakeStream:
    """A stream of a pretended GPU; priorities as CUDA counts them, the lower the more urgent."""

    def __init__(self, device: torch.device | None = None, priority: int = 0) -> None:
        self.device = device
        self.priority = priority
        self.waited_for: list[FakeStream] = []

    def priority_range(self) -> tuple[int, int]:
        return 0, -5

    def wait_stream(self, other: "FakeStream") -> None:
        self.waited_for.append(other)


def test_a_stage_computes_on_its_gpu_in_an_urgent_stream_that_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    default = FakeStream()
    current: list[FakeStream] = [default]
    devices: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda _: default)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: current[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", current.append)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    take(torch.device("cpu"))
    assert (current, devices) == ([default], [])
    take(torch.device("cuda:3"))
    take(torch.device("cuda:3"))
    assert devices == [torch.device("cuda:3")] * 2
    assert [stream.priority for stream in current] == [0, -5]
    assert current[-1].waited_for == [default], "what was begun before is there"
