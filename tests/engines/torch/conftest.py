"""Tiny models of every family, the whole Hugging Face model with the same weights, and a pipeline inside one process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lemix_hpc.config.recipe import Engine, Model, Nodes, Recipe
from lemix_hpc.config.training_section import Training
from lemix_hpc.engines.protocol import MicroBatch, Payload, SequenceResult, ServeBatch, ServeSequence, Work
from lemix_hpc.engines.torch.build import build_stage
from lemix_hpc.engines.torch.stage import TorchStage
from lemix_hpc.engines.torch.weights import RandomWeights

TinyRecipe = Callable[..., Recipe]
Reference = Callable[[Recipe], Any]

VOCAB = 257
LAYERS = 4
_LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 1024,
    # Wide enough weights that tokens differ clearly and the embedding's gradient is not lost in rounding.
    "initializer_range": 0.08,
    "bos_token_id": None,
    "eos_token_id": None,
}
_GPT2 = {
    "model_type": "gpt2",
    "n_embd": 64,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 128,
    "vocab_size": VOCAB,
    "initializer_range": 0.08,
    "bos_token_id": None,
    "eos_token_id": None,
}
TINY: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": False, **_LLAMA},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True, **_LLAMA},
    "mistral": {"model_type": "mistral", "sliding_window": 8, **_LLAMA},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True, **_LLAMA},
    "gpt2": _GPT2,
    "gpt2-untied": {**_GPT2, "tie_word_embeddings": False},
}


@pytest.fixture(autouse=True)
def _one_thread_and_no_traces() -> Iterator[None]:
    """A stage sets its process up for DeepSpeed; here the process goes on to other tests."""
    threads, environment = torch.get_num_threads(), dict(os.environ)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def tiny_recipe() -> TinyRecipe:
    """tiny_recipe(name, stages=1, dtype="float32", model=..., **training) of one of the tiny models."""

    def make(
        name: str,
        stages: int = 1,
        *,
        dtype: Literal["auto", "float32", "bfloat16"] = "float32",
        model: Model | None = None,
        **training: Any,
    ) -> Recipe:
        return Recipe(
            seed=3,
            nodes=Nodes(stages=stages),
            model=model or Model(config=TINY[name]),
            engine=Engine(dtype=dtype),
            training=Training(**training) if training else None,
        )

    return make


@pytest.fixture
def reference() -> Reference:
    """The whole Hugging Face model with the weights that the recipe's stages draw."""

    def make(recipe: Recipe) -> Any:
        settings = dict(recipe.model.config or {})
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        model = AutoModelForCausalLM.from_config(config).eval()
        residual = config.num_hidden_layers if config.model_type == "gpt2" else None
        weights = RandomWeights(recipe.seed, config.initializer_range, residual)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights.read(name, parameter.shape))
        return model

    return make


def finish(work: Work[Any], between: Callable[[], None] | None = None) -> Any:
    """Run work to its end; `between` runs at every yield."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value
        if between is not None:
            between()


class Pipeline:
    """The stages of one node, driven in one process."""

    def __init__(self, recipe: Recipe, device: str = "cpu") -> None:
        self.recipe = recipe
        self.stages: list[TorchStage] = [
            build_stage(recipe, stage=stage, device=device) for stage in range(recipe.nodes.stages)
        ]
        self._batches = 0
        self.next_id = 0
        self.norms: list[float] = []

    def serve(self, sequences: Sequence[ServeSequence], temperature: float = 0.0) -> list[SequenceResult]:
        self._batches += 1
        batch = ServeBatch(self._batches, list(sequences), temperature)
        flowing: Any = None
        for stage in self.stages:
            flowing = finish(stage.serve(batch, flowing))
        results: list[SequenceResult] = flowing
        return results

    def score(self, *prompts: list[int]) -> list[SequenceResult]:
        return self.serve([ServeSequence(i, len(p), 0, False, p) for i, p in enumerate(prompts)])

    def micro_batches(self, group: int, tokens: np.ndarray, labels: np.ndarray | None = None) -> list[MicroBatch]:
        """A group out of tokens (micro-batches, rows, length)."""
        labels = tokens if labels is None else labels
        count, rows, length = tokens.shape
        made = [
            MicroBatch(self.next_id + i, group, i, count, rows, length, tokens[i].tobytes(), labels[i].tobytes())
            for i in range(count)
        ]
        self.next_id += count
        return made

    def forward(self, micro_batch: MicroBatch) -> float:
        flowing: Any = None
        for stage in self.stages:
            flowing = finish(stage.forward(micro_batch, flowing))
        return float(flowing)

    def backward(self, micro_batch: MicroBatch) -> None:
        flowing = None
        for stage in reversed(self.stages):
            flowing = finish(stage.backward(micro_batch.id, flowing))

    def seal(self, group: int) -> tuple[float, Payload | None]:
        """The norm over all stages, and the tied gradient."""
        square, tied = 0.0, None
        for stage in reversed(self.stages):
            sealed = finish(stage.seal(group, tied if stage is self.stages[0] else None))
            square, tied = square + sealed.square_norm, sealed.tied or tied
        return square**0.5, tied

    def step(self, group: int, sealed: tuple[float, Payload | None]) -> None:
        for stage in self.stages:
            finish(stage.prepare(group, *sealed))
            finish(stage.publish(group))

    def train_group(
        self,
        group: int,
        micro_batches: list[MicroBatch],
        order: str = "gpipe",
        between: Callable[[], None] | None = None,
    ) -> float:
        """One step in the given order on every stage; returns the mean loss."""
        losses = _run_schedule(self.stages, micro_batches, order, between)
        sealed = self.seal(group)
        self.norms.append(sealed[0])
        self.step(group, sealed)
        return sum(losses) / len(losses)

    def weights(self) -> list[bytes]:
        return [bytes(payload.data) for stage in self.stages for payload in stage.read_weights()]

    def close(self) -> None:
        for stage in self.stages:
            stage.close()


def _run_schedule(
    stages: list[TorchStage], micro_batches: list[MicroBatch], order: str, between: Callable[[], None] | None
) -> list[float]:
    """Run each stage's operations in its own order, as their inputs become available."""
    todo = [_operations(order, len(stages), stage, len(micro_batches)) for stage in range(len(stages))]
    arrived: dict[tuple[int, str, int], Payload | None] = {(0, "F", m): None for m in range(len(micro_batches))}
    losses = []
    while any(todo):
        for number, stage in enumerate(stages):
            if not todo[number] or (number, *todo[number][0]) not in arrived:
                continue
            kind, m = todo[number].pop(0)
            given = arrived.pop((number, kind, m))
            if kind == "B":
                arrived[number - 1, "B", m] = finish(stage.backward(micro_batches[m].id, given), between)
                continue
            result = finish(stage.forward(micro_batches[m], given), between)
            if number == len(stages) - 1:
                losses.append(result)
                arrived[number, "B", m] = None
            else:
                arrived[number + 1, "F", m] = result
    return losses


def _operations(order: str, stages: int, stage: int, count: int) -> list[tuple[str, int]]:
    if order == "gpipe":
        return [("F", m) for m in range(count)] + [("B", m) for m in range(count)]
    warm_up = min(stages - 1 - stage, count)
    operations = [("F", m) for m in range(warm_up)]
    for m in range(count):
        if warm_up + m < count:
            operations.append(("F", warm_up + m))
        operations.append(("B", m))
    return operations


MakePipeline = Callable[..., Pipeline]
"""make(recipe, device="cpu")"""


@pytest.fixture
def pipeline() -> Iterator[MakePipeline]:
    made: list[Pipeline] = []

    def make(recipe: Recipe, device: str = "cpu") -> Pipeline:
        made.append(Pipeline(recipe, device))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def prompts() -> list[list[int]]:
    """Five prompts of different lengths."""
    draw = np.random.default_rng(0)
    return [draw.integers(0, VOCAB, length).tolist() for length in (12, 1, 7, 20, 7)]
