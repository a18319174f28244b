"""Training and real vLLM on one copy of the weights, in one process: `FAMILY TIED DTYPE DIRECTORY`.

A process of its own for each engine, since neither vLLM nor DeepSpeed forgets the process groups of the one before.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.training_section import Training
from lemix_hpc.engines.torch import attention
from lemix_hpc.engines.torch.optimizer import StageOptimizer
from lemix_hpc.engines.vllm.aliasing import check_sharing, share
from lemix_hpc.engines.vllm.environment import prepare
from lemix_hpc.engines.vllm.hugging_face import CopiedWeights, unfused
from lemix_hpc.engines.vllm.module import FusedLlamaStage
from lemix_hpc.workload.byte_level import byte_level_tokenizer
from tests.engines.vllm.conftest import hugging_face

TOKENS = torch.randint(0, 257, (120,), generator=torch.Generator().manual_seed(1)).tolist()
STEPS = 50


class Served:
    """A vLLM engine in this process, and what it takes to train beside it."""

    def __init__(self, directory: Path, dtype: str) -> None:
        prepare()
        from vllm import LLM

        self.directory = directory
        self.llm = LLM(
            str(directory),
            dtype=dtype,
            enforce_eager=True,
            kv_cache_memory_bytes=64 << 20,
            max_num_seqs=4,
            worker_cls="lemix_hpc.engines.vllm.worker.StageWorker",
            distributed_executor_backend="uni",
            async_scheduling=False,
            enable_prefix_caching=False,
        )
        self.model: Any = self.llm.llm_engine.model_executor.driver_worker.worker.get_model()
        self.config = AutoModelForCausalLM.from_pretrained(directory).config
        attention.register()
        self.config._attn_implementation = attention.IMPLEMENTATION

    def trained(self, *, copied: bool = False) -> FusedLlamaStage:
        weights = {name: weight.clone() if copied else weight for name, weight in self.model.named_parameters()}
        layers = range(self.config.num_hidden_layers)
        return FusedLlamaStage(self.config, weights, layers, first=True, last=True, device=torch.device("cpu"))

    def log_likelihoods(self) -> torch.Tensor:
        from vllm import SamplingParams

        sampling = SamplingParams(max_tokens=1, prompt_logprobs=0)
        (output,) = self.llm.generate([{"prompt_token_ids": TOKENS}], sampling, use_tqdm=False)
        rows = output.prompt_logprobs[1:]
        return torch.tensor([row[token].logprob for row, token in zip(rows, TOKENS[1:], strict=True)])

    def hugging_face(self, trained: FusedLlamaStage, dtype: torch.dtype | None = None) -> torch.Tensor:
        """What Hugging Face makes of the trained weights, by default in their own type."""
        dtype = dtype or next(trained.parameters()).dtype
        model = AutoModelForCausalLM.from_pretrained(self.directory, dtype=dtype).eval()
        missing, unexpected = model.load_state_dict(dict(unfused(trained)), strict=False)
        assert not unexpected
        assert set(missing) <= {"lm_head.weight"}, "a tied head has no weight of its own"
        with torch.no_grad():
            logits = model(torch.tensor([TOKENS])).logits[0, :-1].float()
        likelihoods: torch.Tensor = logits.log_softmax(-1).gather(1, torch.tensor(TOKENS[1:])[:, None])[:, 0]
        return likelihoods


def step(optimizer: StageOptimizer, module: FusedLlamaStage, number: int) -> None:
    """One step on gradients that are easily had: of the weights' own sizes, another direction each time."""
    generator = torch.Generator().manual_seed(number)
    grads = [torch.randn(parameter.shape, generator=generator) for parameter in module.parameters()]
    for _ in optimizer.prepare(grads, 1.0):
        pass
    optimizer.publish()


MODES = [(0, False), (1, False), (1, True)]


def check_served_weights_are_the_trained_ones(served: Served, stage: int, offload: bool) -> None:
    exact = next(served.model.parameters()).dtype == torch.float32
    tolerance = 1e-4 if exact else 5e-2
    module = served.trained()
    training = Training(learning_rate=1e-3, zero_stage=stage, offload_optimizer=offload)  # type: ignore[arg-type]
    optimizer = StageOptimizer(module, training)
    share(served.model, module)
    before = served.log_likelihoods()
    torch.testing.assert_close(before, served.hugging_face(module), rtol=0, atol=tolerance)
    places = {name: parameter.data_ptr() for name, parameter in served.model.named_parameters()}
    for number in range(STEPS):
        step(optimizer, module, number)
    check_sharing(served.model, module)
    assert {name: parameter.data_ptr() for name, parameter in served.model.named_parameters()} == places
    after = served.log_likelihoods()
    torch.testing.assert_close(after, served.hugging_face(module), rtol=0, atol=tolerance)
    assert (after - before).abs().max() > 4 * tolerance, "the steps changed what is served"
    optimizer.close()


def check_one_copy_is_in_memory(served: Served) -> None:
    module = served.trained()
    optimizer = StageOptimizer(module, Training(zero_stage=0))
    share(served.model, module)
    storages = {p.untyped_storage().data_ptr() for m in (served.model, module) for p in m.parameters()}
    assert storages == {p.untyped_storage().data_ptr() for p in module.parameters()}
    optimizer.close()


def check_copied_weights_are_served_after_they_are_published(served: Served) -> None:
    module = served.trained(copied=True)
    before = served.log_likelihoods()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    assert torch.equal(served.log_likelihoods(), before)
    CopiedWeights(served.model, module).publish()
    exact = served.hugging_face(module, torch.float32)
    if next(module.parameters()).dtype == torch.float32:
        torch.testing.assert_close(served.log_likelihoods(), exact, rtol=0, atol=1e-4)
    else:
        # Larger weights round more coarsely; Hugging Face's own rounding says how much.
        assert error(served.log_likelihoods(), exact) < 1.5 * error(served.hugging_face(module), exact)


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Root mean square."""
    return float((found - exact).square().mean().sqrt())


def check_a_model_that_is_not_shared_is_refused(served: Served) -> None:
    module = served.trained()
    check_sharing(served.model, module)
    norm: Any = module.model.norm
    norm.weight.data = norm.weight.detach().clone()
    with pytest.raises(UserError, match=r"model\.norm\.weight lies elsewhere.*engine\.vllm\.weights: copy"):
        check_sharing(served.model, module)
    del norm.weight
    with pytest.raises(UserError, match=r"model\.norm\.weight belongs to only one"):
        share(served.model, module)


def main(family: str, tied: str, dtype: str, directory: Path) -> None:
    hugging_face(family, tied=tied == "tied").save_pretrained(directory)
    byte_level_tokenizer().save_pretrained(directory)
    served = Served(directory, dtype)
    for stage, offload in MODES:
        check_served_weights_are_the_trained_ones(served, stage, offload)
    check_one_copy_is_in_memory(served)
    check_a_model_that_is_not_shared_is_refused(served)
    check_copied_weights_are_served_after_they_are_published(served)
    served.llm.llm_engine.engine_core.shutdown()
    print("all hold")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
