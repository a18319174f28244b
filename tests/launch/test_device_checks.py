"""What the doctor says of GPUs, of what nvidia-smi would print."""

import subprocess

import pytest

from lemix_hpc.config.cluster_section import Cluster
from lemix_hpc.launch import device_checks
from lemix_hpc.launch.check import Verdict
from lemix_hpc.launch.device_checks import in_job, torch_cuda

TWO = "NVIDIA A100, 550.54.15\nNVIDIA A100, 550.54.15\n"


def answer(stdout: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], code, stdout, "")


@pytest.mark.parametrize(
    ("printed", "code", "cuda", "verdict", "told"),
    [
        (TWO, 0, "12.8", "ok", "NVIDIA A100, NVIDIA A100; driver 550.54.15, torch with CUDA 12.8"),
        (TWO, 0, "13.0", "fail", "driver 550.54.15 is too old for torch with CUDA 13.0, which needs 580 or newer"),
        (TWO, 0, None, "warn", "the torch that is installed has no CUDA"),
        ("no devices\n", 9, "13.0", "warn", "nvidia-smi does not answer: no devices"),
    ],
)
def test_gpus_of_a_job_their_driver_and_torch_are_compared(
    printed: str, code: int, cuda: str | None, verdict: Verdict, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_checks, "torch_cuda", lambda: cuda)
    commands: list[list[str]] = []

    def call(command: list[str]) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return answer(printed, code)

    [check] = in_job(Cluster(gpus_per_node=2), ["--partition=gpu"], call)
    assert (check.name, check.verdict) == ("devices in a job", verdict) and told in check.text
    assert {"srun", "--partition=gpu", "--gpus-per-node=2", "nvidia-smi"} <= set(commands[0])


def test_a_job_asks_for_gpus_as_the_recipe_does_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_checks, "torch_cuda", lambda: "13.0")
    commands: list[list[str]] = []

    def late(command: list[str]) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        raise subprocess.TimeoutExpired(command, 60)

    for cluster in (Cluster(gres="gpu:4"), Cluster(sbatch={"gpus-per-task": 1})):
        [check] = in_job(cluster, [], late)
        assert check.verdict == "warn" and "started, so they are not known" in check.text
    assert "--gres=gpu:4" in commands[0] and "--gpus-per-task=1" in commands[1]
    assert list(in_job(Cluster(), [], late)) == []


def test_torch_says_what_it_was_built_for() -> None:
    import torch

    assert torch_cuda() == torch.version.cuda
