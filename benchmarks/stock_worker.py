"""Stock vLLM's CPU worker, able to start a pipeline eagerly: for `vllm_serving.py`, which compares with it."""

from typing import Any

from vllm.distributed.parallel_state import get_pp_group
from vllm.model_executor.layers import utils
from vllm.v1.worker.cpu_worker import CPUWorker

from lemix_hpc.engines.vllm.worker import keep_weights


class EagerPipelineWorker(CPUWorker):  # type: ignore[misc]
    """Without compilation vLLM 0.32 leaves out the run that allocates what later stages receive."""

    def load_model(self, **options: Any) -> None:
        super().load_model(**options)
        runner = self.model_runner
        if not get_pp_group().is_first_rank:
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
            )


class UnpackedWorker(EagerPipelineWorker):
    """The same on weights as they are trained, not packed for vLLM's kernels: what sharing them costs on a CPU."""

    def load_model(self, **options: Any) -> None:
        utils.dispatch_cpu_unquantized_gemm = keep_weights
        super().load_model(**options)
