"""Random weights of a recipe in real vLLM, then real training on them, in a process of its own: `DTYPE DIRECTORY`."""

from __future__ import annotations

import sys
import weakref
from pathlib import Path
from typing import Any

import torch

from lemix_hpc.config.training_section import Training
from lemix_hpc.engines.meter import finish
from lemix_hpc.engines.protocol import MicroBatch
from lemix_hpc.engines.torch.llama import LlamaStage
from lemix_hpc.engines.torch.optimizer import StageOptimizer
from lemix_hpc.engines.torch.payloads import Wire
from lemix_hpc.engines.torch.training import StageTraining
from lemix_hpc.engines.torch.weights import RandomWeights
from lemix_hpc.engines.vllm.aliasing import check_sharing, share
from lemix_hpc.engines.vllm.hugging_face import fill, unfused
from lemix_hpc.engines.vllm.module import FusedLlamaStage
from lemix_hpc.workload.byte_level import byte_level_tokenizer
from tests.checkpoints.states import saved
from tests.engines.vllm.conftest import hugging_face
from tests.engines.vllm.sharing_process import Served

STEPS, ROWS, LENGTH = 50, 2, 32
CPU = torch.device("cpu")


def check_it_starts_from_the_torch_engines_weights(served: Served) -> None:
    source = RandomWeights(7, 0.08)
    layers = range(served.config.num_hidden_layers)
    fill(served.model, source, served.config, layers, first=True, last=True)
    module = served.trained()
    cut = dict(unfused(module))
    with torch.device("meta"):
        stage = LlamaStage(served.config, layers, first=True, last=True, device=CPU)
    assert cut.keys() == dict(stage.named_parameters()).keys()
    for name, parameter in stage.named_parameters():
        assert torch.equal(cut[name], source.read(name, parameter.shape).to(cut[name].dtype)), name
    check_padding(module, served.config.vocab_size)


def check_padding(module: FusedLlamaStage, vocabulary: int) -> None:
    """Rows that pad the vocabulary are no tokens, before and after training."""
    for name, parameter in module.named_parameters():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            padding = parameter[vocabulary:]
            assert len(padding) > 0
            assert not padding.any(), name


def check_training_is_served(served: Served, zero_stage: Any) -> None:
    tolerance = 1e-5 if next(served.model.parameters()).dtype == torch.float32 else 0.1
    module = served.trained()
    own = [weakref.ref(parameter.untyped_storage()) for parameter in served.model.parameters()]
    optimizer = StageOptimizer(module, Training(learning_rate=1e-3, zero_stage=zero_stage, gradient_clipping=None))
    share(served.model, module)
    kept = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    alive = [storage() for storage in own]
    assert all(storage is None or storage.data_ptr() in kept for storage in alive), "vLLM's own storage is freed"
    training = StageTraining(module, Wire(CPU), optimizer, keep_graphs=True, max_positions=None)
    before = served.log_likelihoods()
    torch.testing.assert_close(before, served.hugging_face(module), rtol=0, atol=tolerance)
    losses = [trained_step(training, number) for number in range(STEPS)]
    assert losses[-1] < losses[0] / 2
    check_sharing(served.model, module)
    check_padding(module, served.config.vocab_size)
    after = served.log_likelihoods()
    torch.testing.assert_close(after, served.hugging_face(module), rtol=0, atol=10 * tolerance)
    assert (after - before).abs().max() > 1.5, "the steps changed what is served"
    check_a_saved_state_is_served_again(served, training, module)
    training.close()


def check_a_saved_state_is_served_again(served: Served, training: StageTraining, module: FusedLlamaStage) -> None:
    """And trained on, to the last bit; its tensors have Hugging Face's names and sizes."""
    state = finish(training.snapshot())
    assert {name for name in state.tensors if "/" not in name} == {name for name, _ in unfused(module)}
    expected = served.log_likelihoods()
    kept = saved([state], served.directory.with_name("saved"))
    course = [trained_step(training, number) for number in range(STEPS, STEPS + 5)]
    assert (served.log_likelihoods() - expected).abs().max() > 0
    training.restore(kept)
    check_sharing(served.model, module)
    check_padding(module, served.config.vocab_size)
    assert torch.equal(served.log_likelihoods(), expected)
    assert [trained_step(training, number) for number in range(STEPS, STEPS + 5)] == course


def trained_step(training: StageTraining, number: int) -> float:
    """One optimizer step on one of four micro-batches; its loss."""
    generator = torch.Generator().manual_seed(number % 4)
    tokens = torch.randint(0, 257, (ROWS, LENGTH), generator=generator).int().numpy().tobytes()
    loss = finish(training.forward(MicroBatch(number, number, 0, 1, ROWS, LENGTH, tokens, tokens), None))
    finish(training.backward(number, None))
    finish(training.prepare(number, finish(training.seal(number, None)).square_norm ** 0.5, None))
    finish(training.publish(number))
    assert isinstance(loss, float)
    return loss


def main(dtype: str, directory: Path) -> None:
    hugging_face("mistral", tied=False, sliding_window=8).save_pretrained(directory)
    byte_level_tokenizer().save_pretrained(directory)
    served = Served(directory, dtype)
    for zero_stage in (1, 0):
        check_it_starts_from_the_torch_engines_weights(served)
        check_training_is_served(served, zero_stage)
    served.llm.llm_engine.engine_core.shutdown()
    print("all hold")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
