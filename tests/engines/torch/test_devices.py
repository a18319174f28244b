import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Engine
from lemix_hpc.engines.torch import devices
from lemix_hpc.engines.torch.devices import choose_device, cores_in, gpu_id, like_here, take


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


def test_of_several_instances_of_a_gpu_each_rank_sees_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA shows a process the first of them alone, whatever is listed."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    seen = []
    for stage in range(3):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a, MIG-b")
        seen.append((choose_device(Engine(), stage), gpu_id("cuda:0")))
    assert seen == [("cuda:0", "MIG-a"), ("cuda:0", "MIG-b"), ("cuda:0", "MIG-a")]


def test_whole_gpus_by_their_names_are_left_to_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"of {device}"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1,GPU-0")
    chosen = [choose_device(Engine(), stage) for stage in range(2)]
    assert chosen == ["cuda:0", "cuda:1"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-0"
    assert [gpu_id(device) for device in chosen] == ["of cuda:0", "of cuda:1"]


@pytest.fixture
def cores() -> Iterator[set[int]]:
    """Those of this process, and again afterwards."""
    before = os.sched_getaffinity(0)
    yield before
    os.sched_setaffinity(0, before)


def test_a_rank_stays_on_the_cores_near_its_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cores: set[int], capsys: pytest.CaptureFixture[str]
) -> None:
    near = pretended_gpu(monkeypatch, tmp_path)
    one, elsewhere = min(cores), max(cores) + 1
    near.write_text(f"{one},{elsewhere}-{elsewhere + 3}\n")
    take(torch.device("cuda:0"))
    assert os.sched_getaffinity(0) == {one}
    assert capsys.readouterr().out == ""


def test_a_rank_whose_cores_are_all_far_from_its_gpu_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cores: set[int], capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = max(cores) + 1
    near = pretended_gpu(monkeypatch, tmp_path)
    near.write_text(f"{elsewhere}-{elsewhere + 3}\n")
    take(torch.device("cuda:0"))
    assert os.sched_getaffinity(0) == cores
    told = capsys.readouterr().out
    assert f"near its GPU 0000:1b:00.0 (4 from {elsewhere} to {elsewhere + 3})" in told and "enforce-binding" in told
    near.unlink()
    take(torch.device("cuda:0"))
    assert os.sched_getaffinity(0) == cores, "where Linux does not say, nothing is known"


@pytest.mark.parametrize(("listed", "expected"), [("0-3,8\n", {0, 1, 2, 3, 8}), ("7", {7}), ("\n", set())])
def test_lists_of_cores(listed: str, expected: set[int]) -> None:
    assert cores_in(listed) == expected


def pretended_gpu(monkeypatch: pytest.MonkeyPatch, directory: Path) -> Path:
    """Everything that `take` asks of a GPU; returns the file that names the cores near it."""
    stream = FakeStream()
    properties = SimpleNamespace(pci_domain_id=0, pci_bus_id=0x1B, pci_device_id=0)
    for name, answer in {
        "set_device": None,
        "current_stream": stream,
        "default_stream": FakeStream(),
        "get_device_properties": properties,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(devices, "PCI_DEVICES", directory)
    (directory / "0000:1b:00.0").mkdir()
    return directory / "0000:1b:00.0" / "local_cpulist"


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
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda _: default)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: current[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", current.append)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(devices, "_stay_near", lambda _: None)
    take(torch.device("cpu"))
    assert (current, chosen) == ([default], [])
    take(torch.device("cuda:3"))
    take(torch.device("cuda:3"))
    assert chosen == [torch.device("cuda:3")] * 2
    assert [stream.priority for stream in current] == [0, -5]
    assert current[-1].waited_for == [default], "what was begun before is there"


def test_another_thread_computes_in_the_stream_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which torch keeps for each thread."""
    own = threading.local()
    own.stream = "of serving"
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: own.stream)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(own, "stream", stream))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: setattr(own, "device", device))
    found = []
    enter = like_here(torch.device("cuda:1"))

    def look() -> None:
        enter()
        found.append((own.stream, own.device))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [("of serving", torch.device("cuda:1"))]
    like_here(torch.device("cpu"))()
    assert not hasattr(own, "device"), "on a CPU there is nothing to take over"
