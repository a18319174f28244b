"""The optimizer under every mode of DeepSpeed that a recipe can ask for."""

import importlib
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from lemix_hpc.config.training_section import Training
from lemix_hpc.engines.torch.optimizer import StageOptimizer, _import_deepspeed

MODES = [
    pytest.param(dtype, zero, offload, id=f"{dtype}-zero-{zero}{'-offload' * offload}".removeprefix("torch."))
    for dtype in (torch.float32, torch.bfloat16)
    for zero, offload in ((0, False), (1, False), (1, True), (None, False), (None, True))
]
ZeroStage = Literal[0, 1] | None
MakeOptimizer = Callable[..., StageOptimizer]


def model(dtype: torch.dtype) -> nn.Module:
    """Two layers, and sizes that fill neither a vector nor DeepSpeed's alignment."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(70, 33), nn.Linear(33, 7)).to(dtype)


def gradients(module: nn.Module, step: int, size: float = 0.01) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(step)
    return [size * torch.randn(parameter.shape, generator=draw) for parameter in module.parameters()]


def norm(grads: Iterable[torch.Tensor]) -> float:
    return math.sqrt(sum(float(grad.square().sum()) for grad in grads))


def step(optimizer: StageOptimizer, module: nn.Module, grads: Sequence[torch.Tensor]) -> None:
    """One step; the weights stay as they are until it is published."""
    before = copies(module)
    for _ in optimizer.prepare(grads, norm(grads)):
        assert same(copies(module), before)
    assert same(copies(module), before)
    optimizer.publish()


def copies(module: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def same(left: Iterable[torch.Tensor], right: Iterable[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.fixture
def optimizer() -> Iterator[MakeOptimizer]:
    """optimizer(module, zero, offload, clip=None)"""
    made: list[StageOptimizer] = []

    def make(module: nn.Module, zero: ZeroStage, offload: bool, clip: float | None = None) -> StageOptimizer:
        training = Training(
            learning_rate=1e-2,
            learning_rate_schedule="cosine",
            warmup_steps=3,
            decay_steps=15,
            minimum_learning_rate=1e-3,
            betas=[0.8, 0.95],
            eps=1e-6,
            weight_decay=0.1,
            no_weight_decay=["biases"],
            zero_stage=zero,
            offload_optimizer=offload,
            gradient_clipping=clip,
        )
        made.append(StageOptimizer(module, training))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize(("dtype", "zero", "offload"), MODES)
@pytest.mark.parametrize("clip", [None, 0.05])
def test_fifteen_steps_are_torchs_own_and_the_weights_change_in_place_at_publication(
    dtype: torch.dtype, zero: ZeroStage, offload: bool, clip: float | None, optimizer: MakeOptimizer
) -> None:
    module = model(dtype)
    masters = [parameter.detach().float().clone() for parameter in module.parameters()]
    weights, biases = masters[::2], masters[1::2]
    torchs = torch.optim.AdamW(
        [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.8, 0.95),
        eps=1e-6,
        fused=True,
    )
    rising = lr_scheduler.LinearLR(torchs, start_factor=1 / 3, total_iters=2)
    falling = lr_scheduler.CosineAnnealingLR(torchs, T_max=12, eta_min=1e-3)
    schedule = lr_scheduler.SequentialLR(torchs, [rising, falling], [3])
    mine = optimizer(module, zero, offload, clip)
    places = [parameter.data_ptr() for parameter in module.parameters()]
    for number in range(15):
        grads = gradients(module, number)
        [rate] = {group["lr"] for group in torchs.param_groups}
        assert mine._adamw.param_groups[0]["lr"] == pytest.approx(rate, abs=1e-9)
        for group in torchs.param_groups:  # torch adds its rates up, so that their last bits are others
            group["lr"] = mine._adamw.param_groups[0]["lr"]
        scale = 1.0 if clip is None else min(1.0, clip / (norm(grads) + 1e-6))
        for master, grad in zip(masters, grads, strict=True):
            master.grad = grad * scale
        torchs.step()
        for group in torchs.param_groups:
            group["lr"] = rate
        schedule.step()
        step(mine, module, grads)
        assert same(copies(module), [master.to(dtype) for master in masters])
    assert [parameter.data_ptr() for parameter in module.parameters()] == places


@pytest.mark.parametrize(("dtype", "zero", "offload"), MODES)
def test_a_norm_that_is_not_finite_skips_the_step_and_nothing_else(
    dtype: torch.dtype, zero: ZeroStage, offload: bool, optimizer: MakeOptimizer, caplog: pytest.LogCaptureFixture
) -> None:
    skipping, steady = model(dtype), model(dtype)
    first, second = optimizer(skipping, zero, offload), optimizer(steady, zero, offload)
    for number in range(4):
        step(first, skipping, gradients(skipping, number))
        step(second, steady, gradients(steady, number))
        before = copies(skipping)
        assert list(first.prepare([grad / 0 for grad in gradients(skipping, 9)], float("inf"))) == []
        first.publish()
        assert same(copies(skipping), before)
    assert same(copies(skipping), copies(steady))
    assert "step is skipped" in caplog.text


@pytest.mark.parametrize(("dtype", "zero", "offload"), MODES)
def test_weights_from_outside_are_trained_on(
    dtype: torch.dtype, zero: ZeroStage, offload: bool, optimizer: MakeOptimizer
) -> None:
    """Training goes on from the new weights, with the moments as they were."""
    written, moved = model(dtype), []
    mine = optimizer(written, zero, offload)
    step(mine, written, gradients(written, 0))
    with torch.no_grad():
        for parameter in written.parameters():
            parameter.fill_(1.0)
    mine.weights_replaced()
    before = copies(written)
    step(mine, written, gradients(written, 1))
    for old, new in zip(before, copies(written), strict=True):
        moved.append(float((new - old).abs().max()))
    assert all(0.0 < distance < 0.05 for distance in moved), moved


@pytest.mark.parametrize(("dtype", "zero", "offload"), MODES)
def test_all_memory_of_the_optimizer_is_there_before_the_first_step(
    dtype: torch.dtype, zero: ZeroStage, offload: bool, optimizer: MakeOptimizer
) -> None:
    module = model(dtype)
    adamw = optimizer(module, zero, offload)._adamw
    held = adamw.param_groups[0]["params"]
    assert sum(adamw.state[each]["exp_avg_sq"].numel() for each in held) >= sum(p.numel() for p in module.parameters())


def test_the_chunks_of_a_large_model_are_separate_pieces_of_work(optimizer: MakeOptimizer) -> None:
    module = nn.Linear(1000, 1000)
    work = optimizer(module, 0, False).prepare(gradients(module, 0), 1.0)
    assert sum(1 for _ in work) >= 3


def test_the_module_stays_on_its_device_whatever_deepspeed_computed_on_before(optimizer: MakeOptimizer) -> None:
    optimizer(model(torch.float32), 0, False)  # imports DeepSpeed as the product does
    accelerators = importlib.import_module("deepspeed.accelerator")
    cuda = importlib.import_module("deepspeed.accelerator.cuda_accelerator")
    accelerators.set_accelerator(cuda.CUDA_Accelerator())
    module = model(torch.float32)
    step(optimizer(module, 1, False), module, gradients(module, 0))
    assert accelerators.get_accelerator().device_name() == "cpu"
    assert {parameter.device.type for parameter in module.parameters()} == {"cpu"}


def test_on_a_gpu_deepspeed_is_not_made_to_try_its_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    ops = importlib.import_module("deepspeed.ops")
    monkeypatch.delitem(vars(ops), "__compatible_ops__", raising=False)
    monkeypatch.setattr(ops, "_probe_compatible_ops", lambda: pytest.fail("it tries them all"))
    try:
        _import_deepspeed(torch.device("cuda:0"))
    finally:
        monkeypatch.undo()
        _import_deepspeed(torch.device("cpu"))


def test_deepspeed_waits_for_no_other_rank_of_a_shared_world(tmp_path: Path) -> None:
    """Two ranks of one torch.distributed world; the second has left for long when the first one trains."""
    code = f"""
import sys, torch, torch.distributed as dist
from torch import nn
from torch.optim import lr_scheduler
from lemix_hpc.config.training_section import Training
from lemix_hpc.engines.torch.optimizer import StageOptimizer
from lemix_hpc.engines.torch.solo_world import group_of_this_rank
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://{tmp_path}/store", rank=rank, world_size=2)
alone = group_of_this_rank()
dtype = getattr(torch, sys.argv[2])
for zero, offload in ((0, False), (1, False), (1, True)):
    module = nn.Linear(8 + rank, 8).to(dtype)
    before = module.weight.detach().clone()
    training = Training(learning_rate=1e-2, zero_stage=zero, offload_optimizer=offload)
    optimizer = StageOptimizer(module, training, process_group=alone)
    for _ in range(0 if rank else 2):
        for _ in optimizer.prepare([torch.ones(p.shape) for p in module.parameters()], 1.0):
            pass
        optimizer.publish()
    assert rank or (module.weight < before).all()
    optimizer.close()
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for dtype in ("float32", "bfloat16"):
        (tmp_path / "store").unlink(missing_ok=True)
        ranks = [
            subprocess.Popen([sys.executable, "-c", code, str(rank), dtype], env=environment, stderr=subprocess.PIPE)
            for rank in range(2)
        ]
        for rank in ranks:
            error = rank.communicate(timeout=120)[1]
            assert rank.returncode == 0, error.decode()
