from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lemix_hpc.engines.protocol import ServeSequence
from tests.engines.torch.conftest import MakePipeline, Pipeline, Reference, TinyRecipe, finish

Texts = NDArray[np.int32]
"""Tokens or labels, (steps, micro-batches, rows, length)."""

CASES = [
    ("llama", 1, "gpipe"),
    ("llama", 2, "1f1b"),
    ("llama", 3, "gpipe"),
    ("llama-tied", 1, "gpipe"),
    ("llama-tied", 2, "gpipe"),
    ("llama-tied", 3, "1f1b"),
    ("mistral", 2, "1f1b"),
    ("qwen2", 1, "1f1b"),
    ("qwen2", 3, "gpipe"),
    ("gpt2", 1, "gpipe"),
    ("gpt2", 2, "1f1b"),
    ("gpt2", 3, "1f1b"),
    ("gpt2-untied", 2, "gpipe"),
]
LEARNING_RATE, WEIGHT_DECAY, WARMUP_STEPS, CLIPPING = 3e-3, 0.1, 4, 0.7
OPTIMIZER: dict[str, Any] = {
    "learning_rate": LEARNING_RATE,
    "weight_decay": WEIGHT_DECAY,
    "warmup_steps": WARMUP_STEPS,
    "gradient_clipping": CLIPPING,
    "no_weight_decay": [],
}


def texts(steps: int, micro_batches: int = 4, rows: int = 2, length: int = 16) -> Texts:
    """Learnable token sequences: arithmetic progressions modulo 31."""
    draw = np.random.default_rng(5)
    start = draw.integers(0, 31, (steps, micro_batches, rows, 1))
    stride = draw.integers(1, 4, (steps, micro_batches, rows, 1))
    return np.asarray((start + stride * np.arange(length)) % 31, dtype=np.int32)


def train(
    node: Pipeline,
    data: Texts,
    labels: Texts | None = None,
    order: str = "gpipe",
    between: Callable[[], None] | None = None,
) -> list[float]:
    labels = data if labels is None else labels
    return [
        node.train_group(step, node.micro_batches(step, data[step], labels[step]), order, between)
        for step in range(len(data))
    ]


def train_plainly(model: Any, data: Texts, labels: Texts) -> tuple[list[float], list[float]]:
    """The reference: one process, one model, plain PyTorch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    losses, norms = [], []
    for step, (tokens, wanted) in enumerate(zip(data, labels, strict=True)):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS)
        optimizer.zero_grad()
        total = 0.0
        for micro_tokens, micro_labels in zip(tokens, wanted, strict=True):
            ids, targets = (torch.from_numpy(a.astype(np.int64)) for a in (micro_tokens, micro_labels))
            loss = model(ids, labels=targets).loss / len(tokens)
            loss.backward()
            total += loss.item()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIPPING)))
        optimizer.step()
        losses.append(total)
    return losses, norms


@pytest.mark.parametrize(("family", "stages", "order"), CASES)
def test_twenty_steps_equal_plain_pytorch(
    family: str, stages: int, order: str, tiny_recipe: TinyRecipe, reference: Reference, pipeline: MakePipeline
) -> None:
    recipe = tiny_recipe(family, stages, release="sync", **OPTIMIZER)
    data = texts(20)
    labels = data.copy()
    labels[:, ::2, 0, :5] = -100
    model = reference(recipe)
    node = pipeline(recipe)
    losses = train(node, data, labels, order)
    expected, norms = train_plainly(model, data, labels)
    assert losses == pytest.approx(expected, abs=1e-4)
    assert node.norms == pytest.approx(norms, rel=1e-3)
    assert losses[-1] < 0.7 * losses[0]
    held = dict(node_parameters(node))
    for name, parameter in model.named_parameters():
        assert torch.allclose(held[name], parameter, atol=2e-3), name


def node_parameters(node: Pipeline) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for stage in node.stages:
        yield from stage._module.named_parameters()


@pytest.mark.parametrize("release", ["sync", "async"])
def test_stopping_at_layers_to_serve_changes_nothing(
    release: str, tiny_recipe: TinyRecipe, pipeline: MakePipeline, prompts: list[list[int]]
) -> None:
    recipe = tiny_recipe("llama-tied", 2, release=release, **OPTIMIZER)
    data = texts(4)
    whole, stopped = pipeline(recipe), pipeline(recipe)
    stops = 0

    def serve() -> None:
        nonlocal stops
        stops += 1
        stopped.serve([ServeSequence(stops, len(prompts[0]), 0, True, prompts[0])])

    assert train(whole, data) == train(stopped, data, between=serve)
    assert whole.weights() == stopped.weights()
    passes_with_layers = 2 if release == "sync" else 3
    assert stops >= 4 * 4 * 2 * passes_with_layers


@pytest.mark.parametrize(("family", "stages"), [("llama-tied", 2), ("gpt2", 3)])
def test_running_the_forward_again_changes_nothing_while_weights_stay(
    family: str, stages: int, tiny_recipe: TinyRecipe, pipeline: MakePipeline
) -> None:
    data = texts(4)
    kept, again = (pipeline(tiny_recipe(family, stages, release=release, **OPTIMIZER)) for release in ("sync", "async"))
    assert train(kept, data) == train(again, data)
    assert kept.weights() == again.weights()


@pytest.mark.parametrize(("family", "stages"), [("llama", 2), ("gpt2", 3)])
def test_asynchronous_training_learns(
    family: str, stages: int, tiny_recipe: TinyRecipe, pipeline: MakePipeline
) -> None:
    """PipeDream-like: every micro-batch is a group, and an update lands between its neighbour's forward and backward."""
    node = pipeline(tiny_recipe(family, stages, release="async", learning_rate=3e-3, gradient_clipping=1.0))
    data = texts(60, micro_batches=1)
    losses, last = [], node.stages[-1]
    for group in range(len(data)):
        micro_batch = node.micro_batches(group, data[group])[0]
        losses.append(node.forward(micro_batch))
        assert [stage.holds_graph for stage in node.stages] == [False] * (stages - 1) + [True]
        flowing = finish(last.backward(micro_batch.id, None))
        if group:
            node.step(group - 1, node.seal(group - 1))
        for stage in reversed(node.stages[:-1]):
            flowing = finish(stage.backward(micro_batch.id, flowing))
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_a_recomputed_pass_uses_the_weights_of_the_moment(tiny_recipe: TinyRecipe, pipeline: MakePipeline) -> None:
    """An async first stage between forward and backward sees an update: its gradient is that of the new weights."""
    recipe = tiny_recipe("llama", 2, release="async", learning_rate=1e-2)
    data = texts(2, micro_batches=1)
    late, fresh = pipeline(recipe), pipeline(recipe)
    norms = []
    for node, forward_first in ((late, True), (fresh, False)):
        updating, other = node.micro_batches(0, data[0])[0], node.micro_batches(1, data[1])[0]
        first = node.stages[0]
        if forward_first:
            finish(first.forward(other, None))
        node.forward(updating)
        node.backward(updating)
        node.step(0, node.seal(0))
        if not forward_first:
            finish(first.forward(other, None))
        grad = first._wire.payload(torch.full((2, 16, 64), 1e-2))
        finish(first.backward(other.id, grad))
        norms.append(finish(first.seal(1, None)).square_norm)
    assert norms[0] == norms[1] > 0.0


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_groups_may_overlap(family: str, tiny_recipe: TinyRecipe, pipeline: MakePipeline) -> None:
    """The backwards of the next group run before and after the group before is sealed, and before it steps."""
    recipe = tiny_recipe(family, 2, release="async", **OPTIMIZER)
    data = texts(2, micro_batches=2)
    norms, weights = [], []
    for overlap in (False, True):
        node = pipeline(recipe)
        groups = [node.micro_batches(group, data[group]) for group in (0, 1)]
        for micro_batch in (*groups[0], *groups[1]):
            node.forward(micro_batch)
        order = (0, 0, 1, 1) if not overlap else (0, 1, 0, 1)
        remaining = [list(group) for group in groups]
        for group in order:
            node.backward(remaining[group].pop(0))
        sealed = [node.seal(0), node.seal(1)]
        for group in (0, 1):
            node.step(group, sealed[group])
        norms.append([norm for norm, _ in sealed])
        weights.append(node.weights())
    assert norms[0] == norms[1]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("family", "dtype", "stages"),
    [("llama-tied", "float32", 2), ("gpt2", "float32", 3), ("qwen2", "float32", 3), ("qwen2", "bfloat16", 3)],
)
def test_tied_copies_stay_equal(
    family: str, dtype: str, stages: int, tiny_recipe: TinyRecipe, pipeline: MakePipeline
) -> None:
    node = pipeline(tiny_recipe(family, stages, dtype=dtype, release="sync", **OPTIMIZER))
    before = node.stages[0]._module.embedding.weight.detach().clone()
    train(node, texts(5))
    first, last = (stage._module.embedding.weight for stage in (node.stages[0], node.stages[-1]))
    assert torch.equal(first, last)
    assert not torch.equal(first, before)


@pytest.mark.parametrize(("family", "stages"), [("llama-tied", 2), ("gpt2", 1)])
def test_bfloat16_follows_float32(family: str, stages: int, tiny_recipe: TinyRecipe, pipeline: MakePipeline) -> None:
    data = texts(10)
    low, high = (
        train(pipeline(tiny_recipe(family, stages, dtype=dtype, release="sync", **OPTIMIZER)), data)
        for dtype in ("bfloat16", "float32")
    )
    assert low == pytest.approx(high, rel=0.03)
    assert low[-1] < 0.9 * low[0]


def test_a_micro_batch_without_labels_adds_nothing(tiny_recipe: TinyRecipe, pipeline: MakePipeline) -> None:
    recipe = tiny_recipe("llama-tied", 2, release="sync", **OPTIMIZER)
    data = texts(1, micro_batches=2)
    labels = data.copy()
    labels[0, 1] = -100
    node = pipeline(recipe)
    blank, real = node.micro_batches(0, data[0], labels[0])[::-1]
    assert node.forward(blank) == 0.0
    node.backward(blank)
    assert node.seal(0)[0] == 0.0
    node.forward(real)
    node.backward(real)
    assert node.seal(0)[0] > 0.0


def test_a_norm_that_is_not_finite_skips_the_step(
    tiny_recipe: TinyRecipe, pipeline: MakePipeline, caplog: pytest.LogCaptureFixture
) -> None:
    node = pipeline(tiny_recipe("llama", 1, **OPTIMIZER))
    before = node.weights()
    micro_batch = node.micro_batches(0, texts(1)[0])[0]
    node.forward(micro_batch)
    node.backward(micro_batch)
    node.step(0, (float("nan"), None))
    assert node.weights() == before
    assert "step is skipped" in caplog.text


def test_graphs_are_held_from_forward_to_backward(tiny_recipe: TinyRecipe, pipeline: MakePipeline) -> None:
    node = pipeline(tiny_recipe("llama", 2, release="sync", learning_rate=1e-3))
    micro_batch = node.micro_batches(0, texts(1)[0])[0]
    assert not any(stage.holds_graph for stage in node.stages)
    node.forward(micro_batch)
    assert all(stage.holds_graph for stage in node.stages)
    node.backward(micro_batch)
    assert not any(stage.holds_graph for stage in node.stages)


def test_dropped_work_leaves_no_graph(tiny_recipe: TinyRecipe, pipeline: MakePipeline) -> None:
    stage = pipeline(tiny_recipe("llama", 1, release="sync", learning_rate=1e-3))
    micro_batch = stage.micro_batches(0, texts(1)[0])[0]
    engine = stage.stages[0]
    work = engine.forward(micro_batch, None)
    next(work)
    assert engine.holds_graph
    work.close()
    assert not engine.holds_graph
    assert stage.forward(micro_batch) > 0.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_copied_weights_serve_and_train_on(
    dtype: str, tiny_recipe: TinyRecipe, pipeline: MakePipeline, prompts: list[list[int]]
) -> None:
    recipe = tiny_recipe("llama-tied", 2, dtype=dtype, release="sync", learning_rate=1e-3)
    trained, other = pipeline(recipe), pipeline(recipe.model_copy(update={"seed": 99}))
    data = texts(3)
    train(trained, data[:2])
    before = [stage.read_weights()[0].data.ctypes.data for stage in other.stages]
    for source, target in zip(trained.stages, other.stages, strict=True):
        target.write_weights(source.read_weights())
    assert other.weights() == trained.weights()
    assert [stage.read_weights()[0].data.ctypes.data for stage in other.stages] == before
    assert other.score(*prompts) == trained.score(*prompts)
    other.train_group(7, other.micro_batches(7, data[2]))
    moved = [
        float((a.float() - b.float()).detach().abs().max())
        for (_, a), (_, b) in zip(node_parameters(other), node_parameters(trained), strict=True)
    ]
    assert 0.0 < max(moved) < 5e-3


def test_a_stage_without_training_cannot_step(tiny_recipe: TinyRecipe, pipeline: MakePipeline) -> None:
    with pytest.raises(ValueError, match="a recipe without training"):
        finish(pipeline(tiny_recipe("llama")).stages[0].prepare(0, 1.0, None))
