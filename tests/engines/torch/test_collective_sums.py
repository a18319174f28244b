"""Sums of several nodes by torch's own all-reduce: gloo between processes here, in the place of NCCL."""

from __future__ import annotations

import json
import multiprocessing
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed import FileStore  # type: ignore[attr-defined]

from lemix_hpc.engines.torch import collective_sums, devices, gradients
from lemix_hpc.engines.torch.build import build_stage
from lemix_hpc.engines.torch.collective_sums import CollectiveSums
from lemix_hpc.engines.torch.gradients import GroupGradients
from lemix_hpc.launch.local import environment, mpiexec_command
from tests.engines.torch.conftest import TinyRecipe, finish

RANKS = Path(__file__).with_name("sums_ranks.py")


def lone_group(directory: Path) -> Any:
    """Of one process."""
    return distributed.ProcessGroupGloo(FileStore(str(directory / "meeting"), 1), 0, 1, timedelta(seconds=60))


def connect(how: str, ranks: int = 6) -> tuple[list[list[Any]], str]:
    """What each rank tells, and what was printed before."""
    command = mpiexec_command(ranks, [sys.executable, "-m", "mpi4py", str(RANKS), how])
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    *before, last = done.stdout.strip().splitlines()
    return json.loads(last), "\n".join(before)


@pytest.mark.mpi
def test_stages_sum_with_the_same_stage_of_other_nodes() -> None:
    told, said = connect("none")
    for stage in (0, 1):
        total = stage + (2 + stage)
        assert told[stage] == told[2 + stage] == [[total] * 3, [10.0 * total] * 4]
    assert told[4] == [[4.0] * 3, [40.0] * 4], "its node trains with no other"
    assert "connect by gloo" in said
    assert "was tried, and is right" in said


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("how", "why"), [("one", "stage 1 on .*: the sum is wrong"), ("no port", r"stage 0 on .*no\.such\.host")]
)
def test_all_ranks_say_what_stands_against_it_and_the_way_out(how: str, why: str) -> None:
    told, said = connect(how)
    assert {len(each) for each in told} == {1}
    assert len({each[0] for each in told}) == 1
    assert re.fullmatch(
        f"training.sums: collective, but nodes cannot sum by gloo: {why}.*; set it to messages", told[0][0]
    )
    assert "is right" not in said


def _sum_until_the_other_is_gone(directory: str, rank: int, told: Any) -> None:
    collective_sums.GRACE_S = 0.2
    group: Any = distributed.ProcessGroupGloo(FileStore(directory, 2), rank, 2, timedelta(seconds=60))
    sums = CollectiveSums(group)
    finish(sums.sum([torch.ones(3)]))
    if rank == 1:
        return
    turns = 0
    try:
        for _ in sums.sum([torch.ones(1 << 20)]):
            turns += 1
    except RuntimeError as error:
        told.put((turns, str(error)))


def test_a_node_that_is_gone_is_an_error_but_not_at_once(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("spawn")
    told = processes.Queue()
    started = [
        processes.Process(target=_sum_until_the_other_is_gone, args=(str(tmp_path / "meeting"), rank, told))
        for rank in (0, 1)
    ]
    for process in started:
        process.start()
    turns, why = told.get(timeout=100)
    for process in started:
        process.join(100)
    assert turns > 100, "the loop turned meanwhile, and whoever starts the ranks could end them"
    assert "closed by peer" in why.lower() or "connection reset" in why.lower()


@pytest.mark.parametrize("shares", [[(3, 0.25)], [(3, 0.25), (4, 0.5)], []])
def test_a_stage_gives_what_messages_would_give_to_the_last_bit(
    tiny_recipe: TinyRecipe, tmp_path: Path, shares: list[tuple[int, float]]
) -> None:
    def make() -> Any:
        stage = build_stage(tiny_recipe("llama-tied", learning_rate=1e-3), stage=0, device="cpu")
        generator = torch.Generator().manual_seed(1)
        for group in (3, 4):
            for parameter in list(stage._parameters)[group - 3 :]:  # one has no gradient in one of the groups
                stage._gradients.add(group, parameter, torch.randn(parameter.shape, generator=generator))
        return stage

    messages, alone = make(), make()
    vector = torch.empty(messages.parameters)
    finish(messages.sum_gradients(shares, vector.numpy()))
    alone.join(CollectiveSums(lone_group(tmp_path)))
    group = shares[0][0] if shares else 9
    assert finish(alone.sum_over_nodes(shares, group)) == 4 * alone.parameters
    assert torch.equal(torch.cat([grad.view(-1) for grad in alone._gradients.all_of(group)]), vector)
    assert set(alone._gradients._sums) == {3, 4, group} - {over for over, _ in shares if over != group}
    for stage in (messages, alone):
        stage.close()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_stage_on_a_gpu_sums_by_nccl_with_itself(tiny_recipe: TinyRecipe, tmp_path: Path) -> None:
    """The calls and their streams; that NCCL sums over GPUs is what the next test shows, where there are two."""
    gpu = torch.device("cuda:0")
    devices.take(gpu)
    stage: Any = build_stage(tiny_recipe("llama", learning_rate=1e-3), stage=0, device="cuda:0")
    group = collective_sums._group(gpu, FileStore(str(tmp_path / "meeting"), 1), 0, 1)
    stage.join(CollectiveSums(group))
    for number, value in ((3, 8.0), (4, 2.0)):
        for parameter in stage._parameters:
            stage._gradients.add(number, parameter, torch.full_like(parameter, value))
    assert finish(stage.sum_over_nodes([(3, 0.25), (4, 0.5)], 3)) == 4 * stage.parameters
    assert {float(value) for grad in stage._gradients.all_of(3) for value in (grad.min(), grad.max())} == {3.0}
    stage.close()


@pytest.mark.mpi
@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_sum_by_nccl() -> None:
    told, said = connect("gpus", ranks=2)
    assert told == [[[1.0] * 3, [10.0] * 4]] * 2
    assert "connect by NCCL" in said


def test_gradients_are_made_ready_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gradients.CHUNK, "cpu", 10)
    parameters = [torch.zeros(25), torch.zeros(4), torch.zeros(4), torch.zeros(4)]
    of_groups = GroupGradients(parameters)
    for group in (0, 1):
        for parameter in parameters:
            of_groups.add(group, parameter, torch.ones_like(parameter))
    assert sum(1 for _ in of_groups.combine([(0, 1.0), (1, 2.0)], 7)) == 2 * 3
    assert [set(grad.tolist()) for grad in of_groups.take(7)] == [{3.0}] * 4
