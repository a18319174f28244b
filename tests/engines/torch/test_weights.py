import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lemix_hpc.checkpoints.export import export
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Model, Recipe
from lemix_hpc.engines.model_sizes import model_config
from lemix_hpc.workload.tokenizer import own_tokenizer
from tests.checkpoints.states import checkpoint_of
from tests.engines.torch.conftest import VOCAB, MakePipeline, Reference, TinyRecipe, finish
from tests.engines.torch.test_training import OPTIMIZER, node_parameters, texts, train
from tests.inputs.files import with_tokenizer

Saved = Callable[..., tuple[Path, Recipe]]
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def saved(tmp_path: Path, tiny_recipe: TinyRecipe, reference: Reference) -> Saved:
    """saved(name, **options) -> (checkpoint directory, recipe whose random weights it holds)."""

    def save(name: str, **options: Any) -> tuple[Path, Recipe]:
        recipe = tiny_recipe(name)
        reference(recipe).save_pretrained(tmp_path, **options)
        return tmp_path, recipe

    return save


@pytest.mark.parametrize("family", ["llama", "llama-tied", "mistral", "qwen2", "gpt2", "gpt2-untied"])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_a_saved_model_gives_the_same_stages(
    family: str, shard: str, saved: Saved, tiny_recipe: TinyRecipe, pipeline: MakePipeline, prompts: list[list[int]]
) -> None:
    directory, random = saved(family, max_shard_size=shard)
    assert (directory / "model.safetensors").exists() == (shard == "5GB")
    loaded = pipeline(tiny_recipe(family, 2, model=Model(path=directory)))
    drawn = pipeline(tiny_recipe(family, 2))
    assert loaded.weights() == drawn.weights()
    assert loaded.score(*prompts) == drawn.score(*prompts)
    assert random.nodes.stages == 1


def test_a_stage_needs_only_its_own_shards(saved: Saved, tiny_recipe: TinyRecipe) -> None:
    from lemix_hpc.engines.torch.build import build_stage

    directory, _ = saved("llama", max_shard_size="20KB")
    files = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    first = {file for name, file in files.items() if "embed" in name or "layers.0." in name or "layers.1." in name}
    for file in set(files.values()) - first:
        (directory / file).unlink()
    recipe = tiny_recipe("llama", 2, model=Model(path=directory))
    build_stage(recipe, stage=0, device="cpu").close()
    with pytest.raises(UserError, match="could not be read"):
        build_stage(recipe, stage=1, device="cpu")


def rewrite(directory: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path)


def test_names_of_the_bare_transformer(saved: Saved, tiny_recipe: TinyRecipe, pipeline: MakePipeline) -> None:
    """The original GPT-2 checkpoints have `wte.weight`, not `transformer.wte.weight`."""
    directory, _ = saved("gpt2")
    rewrite(directory, lambda tensors: {name.removeprefix("transformer."): t for name, t in tensors.items()})
    loaded = pipeline(tiny_recipe("gpt2", 2, model=Model(path=directory)))
    assert loaded.weights() == pipeline(tiny_recipe("gpt2", 2)).weights()


def test_a_tied_embedding_under_the_heads_name(saved: Saved, tiny_recipe: TinyRecipe, pipeline: MakePipeline) -> None:
    directory, _ = saved("qwen2")
    rewrite(
        directory,
        lambda tensors: {name.replace("model.embed_tokens.", "lm_head."): t for name, t in tensors.items()},
    )
    loaded = pipeline(tiny_recipe("qwen2", 2, model=Model(path=directory)))
    assert loaded.weights() == pipeline(tiny_recipe("qwen2", 2)).weights()


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_a_token_without_a_row_gets_the_mean_of_the_others(
    family: str, saved: Saved, tiny_recipe: TinyRecipe, pipeline: MakePipeline, tmp_path: Path
) -> None:
    """As Hugging Face does it, on both ends; trained, saved and exported it has its new size."""
    directory, _ = saved(family)
    with_tokenizer(VOCAB + 3)(directory)
    model = Model(path=directory, resize=True)
    tokens = own_tokenizer(model).vocab_size  # some families add their own
    assert tokens >= VOCAB + 3
    node = pipeline(tiny_recipe(family, 2, model=model, release="sync", **OPTIMIZER))
    theirs = AutoModelForCausalLM.from_pretrained(directory)
    theirs.resize_token_embeddings(tokens)
    grown = dict(theirs.named_parameters())
    ours = {name: parameter.detach().clone() for name, parameter in node_parameters(node)}
    for name, parameter in ours.items():
        old = parameter[:VOCAB] if len(parameter) == tokens else parameter
        assert torch.equal(old, grown[name][: len(old)]), name
        torch.testing.assert_close(parameter, grown[name].detach(), rtol=0, atol=1e-4)
    assert sum(len(parameter) == tokens for parameter in ours.values()) == (1 if family != "llama" else 2)
    train(node, texts(2))
    states = [finish(stage.snapshot()) for stage in node.stages]
    export(checkpoint_of(states, tmp_path / "saved", dict(model_config(model)), directory), tmp_path / "exported")
    last = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert last.config.vocab_size == tokens == len(AutoTokenizer.from_pretrained(tmp_path / "exported"))
    for name, parameter in last.named_parameters():
        assert torch.equal(parameter, dict(node_parameters(node))[name]), name


def test_a_missing_tensor_is_named(saved: Saved, tiny_recipe: TinyRecipe, pipeline: MakePipeline) -> None:
    directory, _ = saved("llama")
    rewrite(directory, lambda tensors: {n: t for n, t in tensors.items() if n != "model.norm.weight"})
    with pytest.raises(UserError, match=r"no tensor named model\.norm\.weight"):
        pipeline(tiny_recipe("llama", model=Model(path=directory)))


def test_an_untied_head_does_not_fall_back_to_the_embedding(
    saved: Saved, tiny_recipe: TinyRecipe, pipeline: MakePipeline
) -> None:
    directory, _ = saved("llama")
    rewrite(directory, lambda tensors: {n: t for n, t in tensors.items() if n != "lm_head.weight"})
    with pytest.raises(UserError, match=r"no tensor named lm_head\.weight"):
        pipeline(tiny_recipe("llama", model=Model(path=directory)))


def test_a_tensor_of_another_shape(saved: Saved, tiny_recipe: TinyRecipe, pipeline: MakePipeline) -> None:
    directory, _ = saved("llama")
    rewrite(directory, lambda tensors: tensors | {"model.norm.weight": torch.ones(63)})
    with pytest.raises(UserError, match=r"shape \(63,\), but config.json asks for \(64,\)"):
        pipeline(tiny_recipe("llama", model=Model(path=directory)))


def test_no_safetensors(saved: Saved, tiny_recipe: TinyRecipe, pipeline: MakePipeline) -> None:
    directory, _ = saved("llama")
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        pipeline(tiny_recipe("llama", model=Model(path=directory)))


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_broken_file(name: str, saved: Saved, tiny_recipe: TinyRecipe, pipeline: MakePipeline) -> None:
    directory, _ = saved("llama")
    (directory / "model.safetensors").unlink()
    (directory / name).write_bytes(b"{")
    with pytest.raises(UserError, match=r"could not be read|is damaged"):
        pipeline(tiny_recipe("llama", model=Model(path=directory)))


def test_random_weights_depend_on_the_seed_and_not_on_the_stages(
    tiny_recipe: TinyRecipe, pipeline: MakePipeline
) -> None:
    recipe = tiny_recipe("gpt2-untied")
    one, three = pipeline(recipe), pipeline(tiny_recipe("gpt2-untied", 3))
    assert sorted(one.weights()) == sorted(three.weights())
    assert one.weights() != pipeline(recipe.model_copy(update={"seed": 4})).weights()
