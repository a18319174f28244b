"""A loss that is taken in chunks against one that is taken at once."""

from typing import Any

import pytest
import torch

from lemix_hpc.config.recipe import Model
from lemix_hpc.engines.torch import loss_chunks
from lemix_hpc.engines.torch import micro_batch as passes
from lemix_hpc.engines.torch.build import _fill, _module, hugging_face_config
from lemix_hpc.engines.torch.chunked_loss import HeadGradients
from lemix_hpc.engines.torch.labels import IGNORED, Labels
from lemix_hpc.engines.torch.micro_batch import Segment
from lemix_hpc.engines.torch.module import StageModule
from lemix_hpc.engines.torch.weights import RandomWeights

VOCABULARY, ROWS, LENGTH, SHARE = 97, 2, 24, 0.25
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": VOCABULARY,
    },
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "vocab_size": VOCABULARY,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
}


def stage(name: str, dtype: torch.dtype) -> StageModule:
    """One that is all of its model."""
    config = hugging_face_config(Model(config=CONFIGS[name]))
    module = _module(config, range(2), first=True, last=True, device=torch.device("cpu"))
    _fill(module, RandomWeights(1, 0.02, None), dtype)
    return module


def trained(module: StageModule, labels: torch.Tensor) -> tuple[float, dict[str, torch.Tensor], list[int]]:
    """The loss, the gradients in float32 by name, and of how many tokens logits were made at a time."""
    tokens = labels.clamp(min=0)
    seen: list[int] = []
    logits, names = module.logits, {id(parameter): name for name, parameter in module.named_parameters()}

    def counted(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden.shape[0])
        return logits(hidden)

    module.logits = counted  # type: ignore[method-assign]
    segments: list[Segment | HeadGradients] = []
    forward = passes.forward(module, tokens, Labels.of(labels, torch.device("cpu")), segments, SHARE)
    loss = drive(forward)
    grads: dict[str, torch.Tensor] = {}

    def collect(parameter: torch.Tensor, grad: torch.Tensor) -> None:
        name = names[id(parameter)]
        grads[name] = grads[name] + grad.float() if name in grads else grad.float()

    drive(passes.backward(segments, passes.Backward(torch.tensor(SHARE)), collect))
    module.logits = logits  # type: ignore[method-assign]
    return float(loss), grads, seen


def drive(work: Any) -> Any:
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("chunk", [1, 7, 20])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("name", CONFIGS)
def test_chunks_give_the_loss_and_gradients_of_the_whole(
    name: str, dtype: torch.dtype, tolerance: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    module = stage(name, dtype)
    labels = torch.randint(0, VOCABULARY, (ROWS, LENGTH))
    labels[0, 5:9] = labels[1, :3] = IGNORED
    loss, grads, whole = trained(module, labels)
    count = int((labels[:, 1:] != IGNORED).sum())
    assert whole == [count]
    monkeypatch.setattr(loss_chunks, "MOST_LOGITS", chunk * VOCABULARY)
    in_chunks, their_grads, parts = trained(module, labels)
    assert max(parts) <= chunk and sum(parts) == count and len(parts) > 1
    assert in_chunks == pytest.approx(loss, rel=1e-6 if dtype == torch.float32 else 1e-3)
    assert their_grads.keys() == grads.keys()
    for key, grad in grads.items():
        scale = grad.abs().max()
        assert (their_grads[key] - grad).abs().max() <= tolerance * scale, key


def test_work_can_stop_between_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    module = stage("llama", torch.float32)
    labels = torch.randint(0, VOCABULARY, (ROWS, LENGTH))
    forward = passes.forward(module, labels, Labels.of(labels, torch.device("cpu")), [])
    blocks = sum(1 for _ in forward)
    monkeypatch.setattr(loss_chunks, "MOST_LOGITS", 10 * VOCABULARY)
    forward = passes.forward(module, labels, Labels.of(labels, torch.device("cpu")), [])
    assert sum(1 for _ in forward) == blocks + 4  # 46 labelled tokens in chunks of 10


def test_a_chunk_has_at_least_a_token() -> None:
    assert loss_chunks.chunk_tokens(1 << 30) == 1
    assert loss_chunks.chunk_tokens(128256) == 261
