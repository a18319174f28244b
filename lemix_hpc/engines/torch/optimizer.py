"""The optimizer of one stage: AdamW inside a DeepSpeed engine with a world of its own."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from torch import nn

from lemix_hpc.config.training_section import Training

_LOG = logging.getLogger(__name__)


class StageOptimizer:
    """Applies gradients that were summed and clipped outside: both go over all stages, which DeepSpeed does not see.

    Float32 weights are updated in place. For bfloat16 DeepSpeed keeps a float32 master copy. Weights are bound to their
    final memory here; from then on it stays the same.
    """

    def __init__(self, module: nn.Module, training: Training) -> None:
        self._parameters = list(module.parameters())
        self._clip = training.gradient_clipping
        self._master = self._parameters[0].dtype != torch.float32
        deepspeed = _import_deepspeed(self._parameters[0].device)
        _own_world(self._parameters[0].device)
        adamw = torch.optim.AdamW(
            self._parameters, lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
        )
        warmup = training.warmup_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: min(1.0, (step + 1) / max(warmup, 1)))
        with contextlib.redirect_stdout(io.StringIO()):  # it prints memory figures, whatever its log level
            self._engine = deepspeed.initialize(
                model=module,
                optimizer=adamw,
                lr_scheduler=schedule,
                config=_config(self._master),
                dist_init_required=False,
            )[0]
        # Nothing to reduce in a world of one; without this every step would copy all gradients through a bucket.
        self._engine.enable_backward_allreduce = False

    def step(self, grads: Sequence[torch.Tensor], grad_norm: float) -> None:
        """One update by float32 `grads`, in the order of the module's parameters, whose norm over all stages is given.

        The gradients are overwritten. A norm that is not finite skips the update, on every stage alike.
        """
        if not torch.isfinite(torch.tensor(grad_norm)):
            _LOG.warning("The gradient's norm is %s: this optimizer step is skipped.", grad_norm)
            return
        scale = 1.0 if self._clip is None else min(1.0, self._clip / (grad_norm + 1e-6))
        for parameter, grad in zip(self._parameters, grads, strict=True):
            if scale < 1.0:
                grad.mul_(scale)
            if self._master:
                self._fragments.safe_set_full_grad(parameter, grad)
            else:
                parameter.grad = grad
        if self._master:
            # DeepSpeed marks these in its own backward, and takes no step without.
            self._engine.optimizer.fp32_groups_has_gradients[0] = [True] * len(self._parameters)
        self._engine.step()

    def weights_replaced(self) -> None:
        """Bring the float32 master copy up to weights that were written from outside."""
        if self._master:
            for parameter in self._parameters:
                self._fragments.safe_set_full_fp32_param(parameter, parameter.detach().float())

    @property
    def _fragments(self) -> Any:
        import deepspeed.utils

        return deepspeed.utils

    def close(self) -> None:
        self._engine.destroy()


def _config(master: bool) -> dict[str, Any]:
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": 0},
    }
    if master:
        # Stage 1 is what gives bfloat16 weights a float32 master copy and float32 gradients.
        config |= {
            "bf16": {"enabled": True},
            "data_types": {"grad_accum_dtype": "fp32"},
            "zero_optimization": {"stage": 1},
        }
    return config


def _import_deepspeed(device: torch.device) -> Any:
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    import deepspeed
    import deepspeed.ops

    # Only collectives between several processes of one host would use it, and it takes a compiler 45 s to build.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


def _own_world(device: torch.device) -> None:
    """A process group of this process alone, without a rendezvous: stages talk over MPI only.

    DeepSpeed takes LOCAL_RANK for the device and refuses one that differs from Open MPI's, which counts leaders too.
    """
    os.environ.pop("OMPI_COMM_WORLD_LOCAL_RANK", None)
    os.environ.update(RANK="0", LOCAL_RANK=str(device.index or 0), WORLD_SIZE="1")
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
