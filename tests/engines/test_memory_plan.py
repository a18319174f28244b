"""The memory plan against the engine: what modules hold, and what torch keeps for a backward."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.what_fits import MODELS
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.memory_advice import Gpus, best, changes_that_fit, fits, layouts, with_key
from lemix_hpc.engines.memory_plan import (
    CACHE,
    COLLECTIVE,
    SPARE,
    StagePlan,
    cache_room,
    head_activations,
    layer_activations,
    open_groups,
    plan_memory,
    planned_cache,
    stage_parameters,
)
from lemix_hpc.engines.model_sizes import describe
from lemix_hpc.engines.torch.build import _fill, _module, hugging_face_config, weight_source
from lemix_hpc.engines.torch.chunked_loss import HeadGradients
from lemix_hpc.engines.torch.labels import Labels
from lemix_hpc.engines.torch.micro_batch import Segment, forward
from lemix_hpc.engines.torch.module import StageModule
from lemix_hpc.engines.torch.partition import layer_ranges

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 256,
}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 64,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 128,
    "vocab_size": 300,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CONFIGS = {
    "llama": LLAMA,
    "mistral": LLAMA | {"model_type": "mistral", "head_dim": 32},
    "qwen2": LLAMA | {"model_type": "qwen2"},
    "qwen2-tied": LLAMA | {"model_type": "qwen2", "tie_word_embeddings": True},
    "gpt2": GPT2,
}
LLAMA_8B = MODELS["Llama-3.1-8B"]


def recipe(config: dict[str, Any], stages: int = 1, engine: dict[str, Any] | None = None, **training: Any) -> Recipe:
    text = Path(__file__).parents[2] / "recipes" / "data" / "sums.jsonl"
    return Recipe.model_validate(
        {
            "name": "plan",
            "nodes": {"stages": stages},
            "model": {"config": config},
            "engine": {"kind": "torch"} | (engine or {}),
            "serving": {
                "mode": "generate",
                "max_prompt_tokens": 100,
                "max_new_tokens": 28,
                "source": {"kind": "poisson", "rate": 1, "requests": 1},
            },
            "training": {"data": {"path": str(text)}} | training,
        }
    )


def modules(content: Recipe, dtype: torch.dtype) -> Iterator[StageModule]:
    config = hugging_face_config(content.model)
    ranges = layer_ranges(describe(content.model), content.nodes.stages)
    for stage, layers in enumerate(ranges):
        last = stage == len(ranges) - 1
        module = _module(config, layers, first=stage == 0, last=last, device=torch.device("cpu"))
        _fill(module, weight_source(content, config), dtype)
        yield module


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_weights_are_counted_as_stages_have_them(name: str, stages: int) -> None:
    content = recipe(CONFIGS[name], stages)
    held = [sum(p.numel() for p in module.parameters()) for module in modules(content, torch.float32)]
    plans = plan_memory(content, cuda=False)
    assert [plan.parameters for plan in plans] == held
    assert [plan.device["weights"] for plan in plans] == [4 * count for count in held]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_activations_are_what_torch_keeps(name: str, dtype: torch.dtype) -> None:
    content, rows, length = recipe(CONFIGS[name], 2), 2, 64
    wide = torch.empty((), dtype=dtype).element_size()
    sizes, (first, last) = describe(content.model), modules(content, dtype)
    tokens = torch.randint(0, 300, (rows, length))
    kept = saved_bytes(first, tokens, None) / (rows * length)
    layers = layer_ranges(sizes, 2)
    # What there is per head or position is in no formula.
    counted = len(layers[0]) * layer_activations(sizes, wide) + wide * sizes.hidden
    assert kept == pytest.approx(counted, rel=0.025)
    hidden = torch.randn(rows, length, sizes.hidden, dtype=dtype)
    kept = saved_bytes(last, hidden, Labels.of(tokens, torch.device("cpu"))) / (rows * length)
    below = len(layers[1]) * layer_activations(sizes, wide)
    # Logits come and go; their float32 logarithms stay.
    assert below < kept < below + head_activations(sizes, wide)


def saved_bytes(module: StageModule, entry: torch.Tensor, labels: Labels | None) -> int:
    """All that a forward leaves behind for its backward, without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    segments: list[Segment | HeadGradients] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for _ in forward(module, entry, labels, segments):
            pass
    for segment in segments:
        for tensor in (segment.input, segment.output):
            if tensor is not None:
                keep(tensor)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(
    ("training", "dtype", "optimizer", "gradient", "host"),
    [
        ({"release": "sync"}, "float32", 8, 4, 12),
        ({"release": "sync", "zero_stage": 1}, "float32", 12, 4, 12),
        ({"release": "sync"}, "bfloat16", 12, 4, 12),
        ({"release": "sync", "zero_stage": 0}, "bfloat16", 16, 4, 12),
        ({"release": "sync", "offload_optimizer": True}, "bfloat16", 0, 4, 24),
        ({"release": "sync", "across_nodes": "sync"}, "bfloat16", 12, 4, 20),
        ({"release": "sync", "across_nodes": "sync", "sums": "collective"}, "bfloat16", 12, 4, 12),
    ],
)
def test_bytes_per_weight(training: dict[str, Any], dtype: str, optimizer: int, gradient: int, host: int) -> None:
    [plan] = plan_memory(recipe(LLAMA, 1, {"dtype": dtype}, **training), cuda=True)
    assert plan.parameters is not None
    assert plan.device.get("optimizer", 0) == optimizer * plan.parameters
    assert plan.device["gradients"] == gradient * plan.parameters
    assert plan.on_host == host * plan.parameters


def test_nodes_that_sum_on_their_gpus_take_room_there_and_on_cpus_a_copy() -> None:
    def of(sums: str, *, cuda: bool) -> StagePlan:
        return plan_memory(recipe(LLAMA, 1, across_nodes="sync", sums=sums), cuda=cuda)[0]

    on_gpu = [of(sums, cuda=True) for sums in ("messages", "collective")]
    assert on_gpu[1].on_device - on_gpu[0].on_device == COLLECTIVE
    on_cpu = [of(sums, cuda=False) for sums in ("messages", "collective")]
    assert on_cpu[0].on_host - on_cpu[1].on_host == 4 * (on_cpu[0].parameters or 0)
    assert on_cpu[0].on_device == on_cpu[1].on_device


def test_later_stages_are_ahead_and_keep_more_gradients() -> None:
    async_ones = recipe(LLAMA, 4, micro_batches_per_step=2).training
    assert async_ones is not None
    assert [open_groups(async_ones, stage) for stage in range(4)] == [1, 2, 2, 3]
    assert [open_groups(async_ones, stage, more=4) for stage in range(4)] == [1, 4, 4, 5]


def test_micro_batches_in_flight_by_order() -> None:
    kept = {
        (release, schedule): [
            plan.device["activations"]
            for plan in plan_memory(
                recipe(LLAMA, 4, release=release, schedule=schedule, micro_batches_per_step=6), cuda=False
            )
        ]
        for release, schedule in (("sync", "1f1b"), ("sync", "gpipe"), ("async", "1f1b"))
    }
    one = 128 * (layer_activations(describe(recipe(LLAMA).model), 4) + 4 * 64)
    assert kept["sync", "1f1b"][:3] == [4 * one, 3 * one, 2 * one]
    assert kept["sync", "gpipe"][:3] == [6 * one] * 3
    # Only what came in is kept of those that wait; 4 bytes of 64 values each.
    assert kept["async", "1f1b"][0] == one + 4 * 128 * 64 * 4
    assert kept["sync", "1f1b"][3:] == kept["async", "1f1b"][3:]
    assert kept["sync", "gpipe"][3] - kept["sync", "1f1b"][3] == pytest.approx(5 * one), (
        "its backwards wait for the group"
    )


@pytest.mark.parametrize("kind", ["torch", "vllm"])
def test_what_is_computed_again_is_counted_once(kind: str) -> None:
    def activations(recompute: str, schedule: str) -> list[float]:
        training = {"release": "sync", "schedule": schedule, "recompute": recompute, "micro_batches_per_step": 6}
        plans = plan_memory(recipe(LLAMA, 2, {"kind": kind}, **training), cuda=False)
        return [plan.device["activations"] for plan in plans]

    layer, start = 128 * layer_activations(describe(recipe(LLAMA).model), 4), 128 * 4 * 64
    inputs = 2 * start * (2 if kind == "vllm" else 1)
    for schedule, (first, last) in {"1f1b": (2, 1), "gpipe": (6, 6)}.items():
        head = activations("none", schedule)[1] - last * (2 * layer + start)
        assert activations("none", schedule)[0] == first * (2 * layer + start)
        assert activations("layers", schedule) == [first * inputs + layer, last * inputs + layer + head]
        assert activations("all", schedule)[0] == first * start + 2 * layer + start
        # With 1f1b the backward follows at once on the last stage.
        alone = 2 * layer + start if schedule == "1f1b" else last * start + 2 * layer + start
        assert activations("all", schedule)[1] == alone + head


def test_computing_again_is_named_where_it_would_make_a_run_fit() -> None:
    content = recipe(LLAMA_8B, 4, {"dtype": "bfloat16"}, sequence_length=8192, release="sync", micro_batches_per_step=8)
    room = max(plan.on_device for plan in plan_memory(with_key(content, "training.recompute", "layers"), cuda=True))
    keys = changes_that_fit(content, 1.01 * room / SPARE, cuda=True)
    assert "training.recompute: layers" in keys and "training.recompute: all" not in keys


def test_graphs_of_training_hold_a_micro_batch_and_gradients_of_their_own() -> None:
    plain, graphs = (recipe(LLAMA_8B, 4, sequence_length=512, cuda_graphs=on) for on in (False, True))
    row = "graphs of training"
    sizes = describe(graphs.model)
    for without, plan in zip(plan_memory(plain, cuda=True), plan_memory(graphs, cuda=True), strict=True):
        gradients = 2 * (sizes.layer_parameters + sizes.layer_vectors)
        assert plan.device[row] == len(plan.layers) * (2 * 512 * layer_activations(sizes, 2) + gradients)
        assert without.device == {use: count for use, count in plan.device.items() if use != row}
    assert all(row not in plan.device for plan in plan_memory(graphs, cuda=False)), "a CPU has none"
    room = max(plan.on_device for plan in plan_memory(plain, cuda=True))
    assert "training.cuda_graphs: false" in changes_that_fit(graphs, 1.01 * room / SPARE, cuda=True)


def test_the_cache_is_what_the_batch_may_come_to_or_what_the_recipe_gives() -> None:
    [plan] = plan_memory(recipe(LLAMA), cuda=False)
    assert plan.device[CACHE] == 8 * 128 * 2 * 4 * 32 * 4
    [vllm] = plan_memory(recipe(LLAMA, 1, {"kind": "vllm", "vllm": {"kv_cache_gb": 3}}), cuda=True)
    assert vllm.device[CACHE] == 3e9
    [copy] = plan_memory(recipe(LLAMA, 1, {"kind": "vllm", "vllm": {"weights": "copy"}}), cuda=True)
    assert copy.device["weights"] == 2 * vllm.device["weights"]


def test_what_is_left_for_the_cache_fills_the_fullest_device() -> None:
    plans = plan_memory(recipe(LLAMA_8B, 4, {"kind": "vllm", "vllm": {"kv_cache_gb": 1}}), cuda=True)
    room = cache_room(plans, 80e9)
    fullest = max(plan.on_device - plan.device[CACHE] for plan in plans)
    assert room + fullest == pytest.approx(SPARE * 80e9)


def test_vllm_gets_what_training_leaves_or_a_word_on_why_not() -> None:
    content = recipe(LLAMA_8B, 4, {"kind": "vllm", "dtype": "bfloat16"}, sequence_length=2048)
    plans = plan_memory(content, cuda=True)
    assert planned_cache(content, 85e9) == int(cache_room(plans, 85e9))
    with pytest.raises(
        UserError, match=r"kv_cache_gb: stage \d takes .* of the GPU's 40.0 GB .*lemix plan RECIPE --gpus 1x37GB"
    ):
        planned_cache(content, 40e9)
    shared = recipe(LLAMA_8B, 4, {"kind": "vllm", "share_devices": True})
    with pytest.raises(UserError, match="need to be told how much"):
        planned_cache(shared, 85e9)


def test_an_8b_model_on_eight_gpus_of_80_gb() -> None:
    content = recipe(LLAMA_8B, 2, {"dtype": "bfloat16"}, sequence_length=2048, micro_batches_per_step=8)
    ways = layouts(content, Gpus.parse("8x80GB"))
    on_device = {way.stages: way.fits for way in ways if not way.offload}
    assert on_device == {1: False, 2: False, 4: True, 8: True}
    chosen = best(ways)
    assert chosen is not None and (chosen.stages, chosen.replicas, chosen.offload) == (4, 2, False)
    assert best(layouts(content, Gpus.parse("2x80GB"))).offload
    assert best(layouts(content, Gpus.parse("8x2GB"))) is None
    offloaded = recipe(
        LLAMA_8B, 2, {"dtype": "bfloat16"}, sequence_length=2048, micro_batches_per_step=8, offload_optimizer=True
    )
    assert layouts(offloaded, Gpus.parse("8x80GB")) == ways, "whatever the recipe has now"


def test_the_keys_that_are_named_do_make_it_fit() -> None:
    content = recipe(LLAMA_8B, 2, {"dtype": "bfloat16"}, sequence_length=2048)
    capacity = Gpus.parse("2x80GB").bytes
    assert not fits(plan_memory(content, cuda=True), capacity)
    keys = changes_that_fit(content, capacity, cuda=True)
    assert {"training.offload_optimizer: true", "nodes.stages: 4"} <= set(keys)
    assert fits(plan_memory(with_key(content, "nodes.stages", 4), cuda=True), capacity)
    assert changes_that_fit(content, 1e9, cuda=True) == []


@pytest.mark.parametrize("text", ["8", "8x", "x80GB", "0x80GB", "8x80", "8x0GB", "8x80TB", "-1x80GB", "8x80GBs"])
def test_what_says_no_gpus_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="such as 8x80GB"):
        Gpus.parse(text)


def test_a_stage_of_tied_embeddings_alone_has_them_once() -> None:
    sizes = describe(recipe(CONFIGS["qwen2-tied"]).model)
    alone = stage_parameters(sizes, range(4), first=True, last=True)
    ends = stage_parameters(sizes, range(2), first=True, last=False) + stage_parameters(
        sizes, range(2, 4), first=False, last=True
    )
    assert ends - alone == sizes.head_parameters
