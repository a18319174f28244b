"""vLLM's worker, as our stages use it: on activations that have arrived, and on weights that training changes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.device_communicators import cpu_communicator
from vllm.distributed.parallel_state import get_pp_group
from vllm.model_executor.layers import utils
from vllm.platforms import current_platform
from vllm.sequence import IntermediateTensors

if TYPE_CHECKING or not current_platform.is_cpu():
    from vllm.v1.worker.gpu_worker import Worker
else:
    from vllm.v1.worker.cpu_worker import CPUWorker as Worker


class StageWorker(Worker):  # type: ignore[misc]
    """Loaded by vLLM under its qualified name."""

    def init_device(self) -> None:
        # Stages send activations over MPI. vLLM's own way through shared memory would leave files behind, and hosts that
        # share a name but not their memory would wait for each other.
        cpu_communicator.CpuCommunicator._all_group_ranks_share_shm_group_name = lambda _: False
        super().init_device()

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        # On CPUs vLLM would repack the weights for its kernels and drop the originals, which training changes.
        utils.dispatch_cpu_unquantized_gemm = keep_weights
        super().load_model(load_dummy_weights=load_dummy_weights)
        runner = self.model_runner
        if not get_pp_group().is_first_rank and runner.intermediate_tensors is None:
            # vLLM allocates these in its profiling run, which it leaves out on CPUs without compilation.
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
            )

    @torch.inference_mode()
    def execute_stage(self, plan: Any, arrive: Callable[[], dict[str, torch.Tensor]] | None) -> Any:
        """Run this stage's part of a batch: tensors for the next stage, or the model runner's own result.

        `arrive` gives those of the stage before, each (tokens, hidden), and is called once the batch is prepared; None on the
        first stage.
        """
        output = self.model_runner.execute_model(plan, None if arrive is None else ArrivingTensors(arrive))
        return output.tensors if isinstance(output, IntermediateTensors) else output


class ArrivingTensors(IntermediateTensors):  # type: ignore[misc]
    """Those of the stage before, from when the runner first looks at them."""

    def __init__(self, arrive: Callable[[], dict[str, torch.Tensor]]) -> None:
        self._arrive = arrive

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        return self._arrive()


def keep_weights(layer: torch.nn.Module, remove_weight: bool) -> None:  # noqa: ARG001  as vLLM calls it
    """In place of vLLM's choice of a product on CPUs: one that needs no packed copy of the weight."""
    by_onednn = onednn_multiplies(layer.weight.dtype)  # type: ignore[arg-type]
    layer.cpu_linear = _linear if by_onednn else torch.nn.functional.linear  # type: ignore[assignment]


def onednn_multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN has matrix products of this type on this processor: for bfloat16 it needs AVX-512, on x86."""
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _linear(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """oneDNN's product, as for vLLM's packed weights: for long batches up to a third faster than torch's in float32."""
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
    return product
