"""The fused training module against the stage that Hugging Face's own layers make."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lemix_hpc.engines.meter import finish
from lemix_hpc.engines.torch import attention
from lemix_hpc.engines.torch import micro_batch as passes
from lemix_hpc.engines.torch.blocks import RunBlock
from lemix_hpc.engines.torch.captured_blocks import CapturedBlocks
from lemix_hpc.engines.torch.chunked_loss import HeadGradients
from lemix_hpc.engines.torch.labels import Labels
from lemix_hpc.engines.torch.llama import LlamaStage
from lemix_hpc.engines.torch.micro_batch import Segment
from lemix_hpc.engines.vllm.hugging_face import unfused
from lemix_hpc.engines.vllm.module import FusedLlamaStage
from tests.engines.torch.test_captured_blocks import Graphs
from tests.engines.vllm.conftest import hugging_face

FAMILIES = [
    ("llama", {}),
    ("llama", {"attention_bias": True}),
    ("mistral", {"sliding_window": 8}),
    ("qwen2", {}),
]
PADDED = 320


def fused(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by vLLM's names, the vocabulary padded with zeros as vLLM pads it."""
    result: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        if ".q_proj." in name or ".gate_proj." in name:
            parts, whole = (("q", "k", "v"), "qkv") if ".q_proj." in name else (("gate", "up"), "gate_up")
            names = [name.replace(f"{parts[0]}_proj", f"{part}_proj") for part in parts]
            result[name.replace(f"{parts[0]}_proj", f"{whole}_proj")] = torch.cat([weights[n] for n in names])
        elif any(f".{part}_proj." in name for part in ("k", "v", "up")):
            continue
        elif name in ("model.embed_tokens.weight", "lm_head.weight"):
            result[name] = torch.cat([weight, torch.zeros(PADDED - len(weight), weight.shape[1])])
        else:
            result[name] = weight.clone()
    return result


def pair(family: str, tied: bool, layers: range, *, first: bool, last: bool, **more: Any) -> tuple[Any, Any, Any]:
    model = hugging_face(family, tied=tied, **more)
    config = model.config
    attention.register()
    config._attn_implementation = attention.IMPLEMENTATION
    theirs = LlamaStage(config, layers, first=first, last=last, device=torch.device("cpu")).eval()
    mine = {name: value for name, value in model.state_dict().items() if name in dict(theirs.named_parameters())}
    theirs.load_state_dict(mine)
    ours = FusedLlamaStage(config, fused(mine), layers, first=first, last=last, device=torch.device("cpu"))
    return theirs, ours, config


def run(
    module: Any, entry: torch.Tensor, labels: torch.Tensor | None, run_block: RunBlock | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The output, and the gradient of every parameter and of the entry."""
    segments: list[Segment | HeadGradients] = []
    labelled = None if labels is None else Labels.of(labels, torch.device("cpu"))
    output = finish(passes.forward(module, entry, labelled, segments, run_block=run_block))
    names = {parameter: name for name, parameter in module.named_parameters()}
    grads: dict[str, torch.Tensor] = {}

    def collect(parameter: torch.Tensor, grad: torch.Tensor) -> None:
        grads[names[parameter]] = grads.get(names[parameter], 0) + grad

    torch.manual_seed(5)
    flowing = torch.tensor(1.0) if labels is not None else torch.randn_like(output)
    entry_grad = finish(passes.backward(segments, passes.Backward(flowing), collect))
    return output, grads | ({} if entry_grad is None else {"entry": entry_grad})


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("family", "more"), FAMILIES)
@pytest.mark.parametrize(
    ("layers", "first", "last"), [((0, 3), True, True), ((0, 1), True, False), ((2, 3), False, True)]
)
def test_outputs_and_gradients_are_hugging_faces(
    family: str, more: dict[str, Any], tied: bool, layers: tuple[int, int], first: bool, last: bool
) -> None:
    theirs, ours, _ = pair(family, tied, range(*layers), first=first, last=last, **more)
    tokens = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(1))
    entry = tokens if first else torch.randn(2, 20, 128, generator=torch.Generator().manual_seed(2))
    labels = tokens if last else None
    expected, expected_grads = run(theirs, entry, labels)
    output, grads = run(ours, entry, labels)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    whole = fused({name: grad for name, grad in expected_grads.items() if name != "entry"})
    assert grads.keys() == whole.keys() | ({"entry"} if not first else set())
    for name, grad in whole.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("family", "more"), FAMILIES)
def test_cut_into_hugging_faces_parameters_nothing_is_lost(family: str, more: dict[str, Any]) -> None:
    theirs, ours, _ = pair(family, False, range(3), first=True, last=True, **more)
    cut = dict(unfused(ours))
    assert cut.keys() == dict(theirs.named_parameters()).keys()
    for name, parameter in theirs.named_parameters():
        assert torch.equal(cut[name], parameter)


def test_halves_of_layers_run_as_graphs() -> None:
    _, ours, _ = pair("llama", True, range(3), first=True, last=True)
    tokens = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(1))
    loss, grads = run(ours, tokens, tokens)
    graphs = Graphs()
    captured = CapturedBlocks(ours, 2, 20, graphs.capture)
    found, found_grads = run(ours, tokens, tokens, captured.runner(0, tokens))
    assert torch.equal(found, loss) and grads.keys() == found_grads.keys()
    assert all(torch.equal(found_grads[name], grad) for name, grad in grads.items())
    assert graphs.ran == 6
