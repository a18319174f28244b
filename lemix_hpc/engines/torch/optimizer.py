"""The optimizer of one stage: AdamW inside a DeepSpeed engine with a world of its own."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed
from torch import nn

from lemix_hpc.config.training_section import Training
from lemix_hpc.engines.protocol import Work
from lemix_hpc.engines.torch.adamw import ChunkedAdamW
from lemix_hpc.engines.torch.learning_rate import learning_rate_factor
from lemix_hpc.engines.torch.solo_world import SoloWorld, name_device, own_world
from lemix_hpc.engines.torch.weight_decay import not_decayed

_LOG = logging.getLogger(__name__)

_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Elements of one piece of an update: below a millisecond of memory traffic, and well above what starting a piece costs."""
_OFFLOADED_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 22}
"""The same with the state in host memory. Beside a GPU, gradients come in longer pieces: small copies are slow."""


class StageOptimizer:
    """Applies gradients that were summed and clipped outside: both go over all stages, which DeepSpeed does not see.

    Without a master copy (float32, ZeRO stage 0) the new weights are prepared in the gradients' memory and published by a
    copy. With one (bfloat16, or ZeRO stage 1) the master is updated in place and published by DeepSpeed, which copies it
    into the weights. From a master in host memory that takes long: with `offload_optimizer` the new weights return into the
    gradients' memory while they are prepared, and are published from there. Weights are bound to their final memory here;
    from then on it stays the same.
    """

    def __init__(
        self, module: nn.Module, training: Training, *, process_group: torch.distributed.ProcessGroup | None = None
    ) -> None:
        """`process_group`: holds this rank alone; needed where torch.distributed already has several ranks."""
        self._parameters = list(module.parameters())
        self._clip = training.gradient_clipping
        device, dtype = self._parameters[0].device, self._parameters[0].dtype
        stage = _zero_stage(training, dtype)
        self._zero = stage == 1
        self._master = self._zero or dtype != torch.float32
        self._offload = training.offload_optimizer
        deepspeed = _import_deepspeed(device)
        name_device(device)
        if process_group is None:
            own_world()
        self._adamw = ChunkedAdamW(
            self._parameters,
            lr=training.learning_rate,
            betas=(training.betas[0], training.betas[1]),
            eps=training.eps,
            weight_decay=training.weight_decay,
            not_decayed=not_decayed(module.named_parameters(), training.no_weight_decay),
            chunk=(_OFFLOADED_CHUNK if training.offload_optimizer else _CHUNK)[device.type],
            in_place=self._master,
            handed_back=self._offload,
        )
        self._factor = partial(learning_rate_factor, training)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._adamw, self._factor)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints memory figures, whatever its log level
            self._engine = deepspeed.initialize(
                model=module,
                optimizer=self._adamw,
                lr_scheduler=self._schedule,
                config=_config(stage, dtype, device, offload=training.offload_optimizer),
                mpu=None if process_group is None else SoloWorld(process_group),
                dist_init_required=False,
            )[0]
        # Nothing to reduce in a world of one; without this every step would copy all gradients through a bucket.
        self._engine.enable_backward_allreduce = False
        self._adamw.moments(
            self._parameters
        )  # the memory is taken now, not at the first step, when requests are served
        self._skip = False
        self._handed_back: Sequence[torch.Tensor] = ()

    def prepare(self, grads: Sequence[torch.Tensor], grad_norm: float) -> Work[None]:
        """Work out one update by float32 `grads`, in the order of the module's parameters; the weights stay as they are.

        `grad_norm`: over all stages. One that is not finite skips the update, on every stage alike. The gradients belong
        to the optimizer from here on.
        """
        self._skip = not math.isfinite(grad_norm)
        if self._skip:
            _LOG.warning("The gradient's norm is %s: this optimizer step is skipped.", grad_norm)
            return
        scale = 1.0 if self._clip is None else min(1.0, self._clip / (grad_norm + 1e-6))
        yield from self._adamw.prepare(grads, scale)
        if self._offload:
            self._handed_back = grads

    def publish(self) -> None:
        """Bring the prepared update into the weights, untorn."""
        if self._skip:
            return
        if self._offload:
            self._publish_handed_back()
            return
        if self._zero:
            self._hand_over_gradient()
        self._engine.step()

    def weights_replaced(self) -> None:
        """Bring the float32 master copy up to weights that were written from outside."""
        if self._master:
            with torch.no_grad():
                self._adamw.assign(self._parameters)

    @property
    def keeps_master(self) -> bool:
        """Whether the float32 weights are a copy beside those that serve."""
        return self._master

    def master(self) -> list[torch.Tensor]:
        """Flat views of the float32 weights, in the order of the module's parameters."""
        return self._adamw.held(self._parameters)

    @torch.no_grad()
    def publish_master(self) -> None:
        """Bring a master copy that was changed from outside into the weights."""
        for parameter, master in zip(self._parameters, self.master(), strict=True):
            parameter.copy_(master.view(parameter.shape))

    def moments(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Flat views of AdamW's first and second moments, in the order of the module's parameters."""
        return self._adamw.moments(self._parameters)

    @property
    def updates(self) -> int:
        """How many updates AdamW has made: all steps but those that were skipped."""
        return self._adamw.updates

    @property
    def schedule(self) -> int:
        """Where the schedule of the learning rate stands, in updates."""
        position: int = self._schedule.last_epoch
        return position

    def go_on_from(self, updates: int, schedule: int) -> None:
        """The master weights and the moments have been replaced by those after so many updates: bring all else up to them."""
        self._adamw.updates = updates
        rates = [base * self._factor(schedule) for base in self._schedule.base_lrs]
        place = {"last_epoch": schedule, "_step_count": schedule + 1, "_last_lr": rates}
        self._schedule.load_state_dict(self._schedule.state_dict() | place)
        for group, rate in zip(self._adamw.param_groups, rates, strict=True):
            group["lr"] = rate
        if self._master:
            self.publish_master()

    def close(self) -> None:
        self._engine.destroy()

    @torch.no_grad()
    def _publish_handed_back(self) -> None:
        weights: list[torch.Tensor] = list(self._parameters)
        torch._foreach_copy_(weights, [new.view(w.shape) for w, new in zip(weights, self._handed_back, strict=True)])
        self._handed_back = ()
        self._adamw.step()
        self._schedule.step()

    def _hand_over_gradient(self) -> None:
        """DeepSpeed asks for a flat gradient, which is in the master already: one zero stands for all of it."""
        from deepspeed.runtime.zero.stage_1_and_2 import GradPartitionBufferGroup

        [flat] = self._adamw.param_groups[0]["params"]
        self._engine.optimizer.averaged_gradients[0] = GradPartitionBufferGroup(
            [], flat.new_zeros(1).expand(flat.shape)
        )


def _zero_stage(training: Training, dtype: torch.dtype) -> int:
    if training.zero_stage is not None:
        return training.zero_stage
    return 1 if training.offload_optimizer or dtype != torch.float32 else 0


def _config(stage: int, dtype: torch.dtype, device: torch.device, *, offload: bool) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": stage, "contiguous_gradients": False, "overlap_comm": False}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
    elif stage == 1:
        zero["compute_grad_norm"] = False  # the norm goes over all stages, and is known before
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,  # done here, over all stages; DeepSpeed clips to 1 unless it is told not to
        "managed_gradient_accumulation": False,
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }
    if dtype == torch.bfloat16:
        config["bf16"] = {"enabled": True}
    return config


def _import_deepspeed(device: torch.device) -> Any:
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    import deepspeed
    import deepspeed.ops
    from deepspeed.accelerator import cpu_accelerator, cuda_accelerator, get_accelerator, set_accelerator

    if get_accelerator().device_name() != device.type:  # chosen by whoever came first; it would move the module there
        kind = cpu_accelerator.CPU_Accelerator if device.type == "cpu" else cuda_accelerator.CUDA_Accelerator
        set_accelerator(kind())
    if device.type == "cpu":
        # Only collectives between several processes of one host would use it, and it takes a compiler 45 s to build. Asking for
        # the table makes DeepSpeed try all its operators, on a GPU with compilers that may be missing.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed
