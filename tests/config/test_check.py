from pathlib import Path
from typing import Any

import pytest

from lemix_hpc.config.check import check_recipe, gpus_per_host
from lemix_hpc.config.recipe import Recipe

SERVING = {"source": {"kind": "poisson", "rate": 1, "requests": 3}}
LLAMA = {"config": {"model_type": "llama"}}


VLLM = {"model": LLAMA, "engine": {"kind": "vllm"}}
BATCH = {"source": {"kind": "openai-batch", "path": __file__}}


def problems(**sections: Any) -> list[tuple[str, str]]:
    return [(problem.key, problem.text) for problem in check_recipe(Recipe.model_validate(sections))]


def test_a_sound_recipe_has_no_problems(tmp_path: Path) -> None:
    coefficients = tmp_path / "c.yaml"
    coefficients.touch()
    assert (
        problems(engine={"kind": "emulated", "coefficients": coefficients}, serving=SERVING, training={"share": 0.2})
        == []
    )
    assert problems(model=LLAMA, serving=SERVING) == []
    assert problems(**VLLM, serving={"http": {}}, training={}) == [], "clients bring the text"
    assert problems(**VLLM, serving=BATCH) == []


CASES = {
    "a share of clients' requests": (
        VLLM | {"serving": {"http": {}}, "training": {"share": 0.5}},
        "training.share",
        "clients may send any number of requests, so a share has no meaning; give `micro_batches`",
    ),
    "a batch cut by the recipe": (
        VLLM | {"serving": BATCH | {"max_new_tokens": 3}},
        "serving.max_new_tokens",
        "vllm answers each line of a batch file as it is",
    ),
    "training text that nobody brings": (
        VLLM | {"serving": BATCH, "training": {}},
        "training.data",
        "missing; the vllm engine needs text to train on",
    ),
    "an interval of averages that are not taken": (
        {
            "model": LLAMA,
            "serving": SERVING,
            "training": {"data": {"path": __file__}, "average_every": 4, "across_nodes": "sync"},
        },
        "training.average_every",
        "only training.across_nodes: average uses it, and that is sync; leave it out, or set average",
    ),
    "collective sums of weights": (
        {
            "model": LLAMA,
            "serving": SERVING,
            "training": {"data": {"path": __file__}, "sums": "collective", "across_nodes": "average"},
        },
        "training.sums",
        "only training.across_nodes: sync sums gradients, and that is average; leave it out, or set sync",
    ),
    "nothing to do": ({"model": LLAMA}, "", "there is nothing to do"),
    "emulated without coefficients": (
        {"engine": {"kind": "emulated"}, "serving": SERVING},
        "engine.coefficients",
        "missing; the emulated engine takes its times",
    ),
    "torch without model": ({"serving": SERVING}, "model", "the torch engine needs a model"),
    "hosts not filled": (
        {"model": LLAMA, "serving": SERVING, "nodes": {"count": 5}, "cluster": {"nodes_per_host": 2}},
        "nodes.count",
        "5 nodes do not fill whole hosts of cluster.nodes_per_host = 2; take 4 or 6",
    ),
    "wrong number of GPUs": (
        {"model": LLAMA, "serving": SERVING, "nodes": {"stages": 4}, "cluster": {"gpus_per_node": 2}},
        "cluster.gpus_per_node",
        "asks for 2 GPUs on a host, but its stages use 4",
    ),
    "wrong number in gres": (
        {"model": LLAMA, "serving": SERVING, "nodes": {"stages": 4}, "cluster": {"gres": "gpu:a100:8"}},
        "cluster.gres",
        "asks for 8 GPUs on a host, but its stages use 4",
    ),
    "separate on one node": (
        {"model": LLAMA, "serving": SERVING, "policy": {"placement": "separate"}},
        "policy.placement",
        "separate needs at least 2 nodes",
    ),
    "all nodes train": (
        {
            "model": LLAMA,
            "serving": SERVING,
            "nodes": {"count": 2},
            "policy": {"placement": "separate", "training_nodes": 2},
        },
        "policy.training_nodes",
        "2 of 2 nodes leave none to serve; give at most 1",
    ),
    "training nodes without separate": (
        {"model": LLAMA, "serving": SERVING, "nodes": {"count": 2}, "policy": {"training_nodes": 1}},
        "policy.training_nodes",
        "only placement separate uses it",
    ),
    "node kinds with torch": (
        {"model": LLAMA, "serving": SERVING, "nodes": {"count": 2, "kinds": [{"count": 2}]}},
        "nodes.kinds",
        "only `lemix simulate` and the emulated engine have nodes of several kinds",
    ),
    "drawn lengths with torch": (
        {"model": LLAMA, "serving": SERVING, "training": {"data": {"path": __file__}, "lengths": "lmsys-chat"}},
        "training.lengths",
        "only the emulated engine draws lengths",
    ),
    "torch training without data": (
        {"model": LLAMA, "serving": SERVING, "training": {}},
        "training.data",
        "missing; the torch engine needs text to train on",
    ),
    "missing trace": (
        {"model": LLAMA, "serving": {"source": {"kind": "azure", "path": "/nowhere/t.csv"}}},
        "serving.source.path",
        "there is no file /nowhere/t.csv",
    ),
    "a share of clients' samples held out": (
        VLLM | {"serving": {"http": {}}, "training": {"held_out": {"share": 0.1}}},
        "training.held_out.share",
        "there is no training.data to hold it out of; name a file by training.held_out.path",
    ),
    "missing file of held-out samples": (
        VLLM | {"serving": {"http": {}}, "training": {"held_out": {"path": "/nowhere/h.jsonl"}}},
        "training.held_out.path",
        "there is no file /nowhere/h.jsonl",
    ),
    "missing file of several": (
        {"model": LLAMA, "training": {"micro_batches": 1, "data": {"path": [__file__, "/nowhere/t.jsonl"]}}},
        "training.data.path",
        "there is no file /nowhere/t.jsonl",
    ),
    "pattern without files": (
        {"model": LLAMA, "training": {"micro_batches": 1, "data": {"path": "/nowhere/*.jsonl"}}},
        "training.data.path",
        "no file matches /nowhere/*.jsonl",
    ),
    "missing file of beliefs": (
        {"model": LLAMA, "serving": SERVING, "policy": {"coefficients": "/nowhere/c.yaml"}},
        "policy.coefficients",
        "there is no file /nowhere/c.yaml",
    ),
    "missing checkpoint": (
        {"model": {"path": "/nowhere/model"}, "serving": SERVING},
        "model.path",
        "there is no directory /nowhere/model",
    ),
}


@pytest.mark.parametrize(("sections", "key", "text"), CASES.values(), ids=CASES.keys())
def test_one_problem_is_found(sections: dict[str, Any], key: str, text: str) -> None:
    [(found_key, found_text)] = problems(**sections)
    assert found_key == key
    assert found_text.startswith(text)


@pytest.mark.parametrize(("training", "key"), [({"share": 0.5}, "training.share"), ({}, "training")])
def test_training_alone_needs_an_amount(tmp_path: Path, training: dict[str, Any], key: str) -> None:
    data = tmp_path / "d.jsonl"
    data.touch()
    [(found, text)] = problems(model=LLAMA, training={"data": {"path": data}, **training})
    assert found == key
    assert "give `micro_batches`" in text


def test_only_synchronous_training_chooses_what_it_computes_again() -> None:
    common = {"engine": {"kind": "emulated", "coefficients": __file__}}
    training = {"micro_batches": 4, "recompute": "layers"}
    [(key, text)] = problems(**common, training=training)
    assert key == "training.recompute" and "set training.release: sync" in text.lower()
    assert problems(**common, training=training | {"release": "sync"}) == []


def test_micro_batches_in_flight_reach_the_last_stage_and_are_for_1f1b() -> None:
    data = {"data": {"path": __file__}, "micro_batches": 4}
    common = {"model": LLAMA, "nodes": {"stages": 4}}
    [(key, text)] = problems(**common, training=data | {"in_flight": 3})
    assert key == "training.in_flight" and "give at least 4" in text
    [(key, text)] = problems(**common, training=data | {"in_flight": 8, "release": "sync", "schedule": "gpipe"})
    assert key == "training.in_flight" and "use 1f1b" in text
    assert problems(**common, training=data | {"in_flight": 8}) == []


def test_shared_devices_and_processors_need_no_gpu_per_stage() -> None:
    common = {"model": LLAMA, "serving": SERVING, "nodes": {"stages": 4}, "cluster": {"gpus_per_node": 2}}
    assert problems(**common, engine={"share_devices": True}) == []
    assert problems(**common, engine={"device": "cpu"}) == []


@pytest.mark.parametrize(
    ("gres", "count"),
    [
        ("gpu", 1),
        ("gpu:4", 4),
        ("gpu:a100:8", 8),
        ("shard:2", None),
        ("gpu:2,nic:1", 2),
        ("craynetwork:1,gpu:h100:4", 4),
        (None, None),
    ],
)
def test_gpus_in_a_gres(gres: str, count: int | None) -> None:
    assert gpus_per_host(Recipe.model_validate({"cluster": {"gres": gres}})) == count


def test_a_file_where_the_checkpoint_should_be(tmp_path: Path) -> None:
    [(key, text)] = problems(model={"path": tmp_path}, serving=SERVING)
    assert key == "model.path"
    assert "has no config.json" in text


def test_a_missing_file_of_a_kind_is_named() -> None:
    sections = {"engine": {"kind": "emulated", "coefficients": __file__}, "serving": SERVING}
    kinds = [{"count": 1}, {"count": 1, "coefficients": "/nowhere/c.yaml"}]
    assert problems(**sections, nodes={"count": 2, "kinds": kinds}) == [
        ("nodes.kinds.1.coefficients", "there is no file /nowhere/c.yaml")
    ]


def test_collective_sums_need_gradients(tmp_path: Path) -> None:
    coefficients = tmp_path / "c.yaml"
    coefficients.touch()
    training = {"sums": "collective", "across_nodes": "sync", "micro_batches": 3}
    [(key, text)] = problems(engine={"kind": "emulated", "coefficients": coefficients}, training=training)
    assert (key, "emulated has no gradients to sum" in text) == ("training.sums", True)
    assert problems(model=LLAMA, training=training | {"data": {"path": __file__}}) == []


def test_graphs_of_training_need_a_gpu(tmp_path: Path) -> None:
    coefficients = tmp_path / "c.yaml"
    coefficients.touch()
    emulated = {"kind": "emulated", "coefficients": coefficients}
    training = {"cuda_graphs": True, "micro_batches": 3, "data": {"path": __file__}}
    [(key, text)] = problems(engine=emulated, training=training)
    assert (key, "emulated has no graphs" in text) == ("training.cuda_graphs", True)
    [(key, text)] = problems(model=LLAMA, engine={"device": "cpu"}, training=training)
    assert (key, "engine.device is cpu" in text) == ("training.cuda_graphs", True)
    assert problems(model=LLAMA, training=training) == []
