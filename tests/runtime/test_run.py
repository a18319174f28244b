"""Whole runs over MPI: every request answered, weights never mixed, training unmoved by serving."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml

from lemix_hpc.config.load import load_recipe
from lemix_hpc.engines.memory_plan import stage_takes
from lemix_hpc.launch.rundir import RunDir
from lemix_hpc.launch.states import read_progress
from lemix_hpc.policy.events import Place
from lemix_hpc.policy.latency import Shape
from lemix_hpc.profiling.hardware import load_hardware
from lemix_hpc.records.event_log import read_events
from lemix_hpc.run_setup.scheduler_setup import make_scheduler
from lemix_hpc.workload.load import load_workload
from tests.engines.torch.test_serving import hf_greedy
from tests.engines.vllm.conftest import hugging_face
from tests.runtime.conftest import A100, SUMS, FinishedRun, Run, sums_training, tiny_llama

pytestmark = pytest.mark.mpi


def poisson(rate: float, requests: int, **changes: Any) -> dict[str, Any]:
    source = {"kind": "poisson", "rate": rate, "requests": requests, "lengths": "lmsys-chat"}
    return {"source": source, "max_prompt_tokens": 64, "prompts": {"path": str(SUMS)}} | changes


def mean_nll(served: list[dict[str, Any]]) -> float:
    return float(sum(task["nll"] for task in served) / sum(task["scored_tokens"] for task in served))


def test_no_batch_ever_sees_two_weight_versions(lemix_run: Run) -> None:
    run = lemix_run(
        {
            "name": "versions",
            "nodes": {"count": 1, "stages": 3},
            "model": {"config": tiny_llama()},
            "engine": {"max_batch_requests": 1},
            "serving": poisson(rate=30, requests=240),
            "training": sums_training(release="async"),
        }
    )
    batches = run.serving_batches()
    assert len(batches) >= 200
    for spans in batches.values():
        assert {span["stage"] for span in spans} == {0, 1, 2}
        assert len({span["version"] for span in spans}) == 1
    versions = {spans[0]["version"] for spans in batches.values()}
    assert len(versions) > 10, "the weights must have changed a lot while these were served"
    assert run.report["serving"]["finished"] == run.report["serving"]["received"] == 240
    assert run.report["training"]["steps"] > 10


def test_training_takes_the_same_course_with_and_without_serving_and_enough_memory(lemix_run: Run) -> None:
    training = sums_training(release="sync", schedule="gpipe", micro_batches_per_step=4, micro_batches=48)
    recipe = {
        "name": "alone",
        "nodes": {"count": 1, "stages": 2},
        "model": {"config": tiny_llama()},
        "training": training,
    }
    alone = lemix_run(recipe)
    loaded = load_recipe(alone.path / "recipe.yaml")
    assert loaded.training is not None
    tokens = loaded.training.micro_batch_size * loaded.training.sequence_length
    stages = [stage_takes(loaded, stage, None, cuda=False) for stage in (0, 1)]
    # Room for two micro-batches of the four of a group, all of which go forward first; room to bring one back to is kept.
    needed = max(takes.resting + takes.working + 2.1 * tokens * takes.activation_bytes for takes in stages)
    short = {"capacity_gb": needed / 1e9, "kappa": 1.0, "max_wait_s": 0.0}
    changed = {"name": "beside", "serving": poisson(rate=25, requests=60), "policy": {"memory": short}}
    beside = lemix_run(recipe | changed)
    assert beside.report["memory"]["stages"][0]["offloads"] > 0
    assert all(stage["peak"] <= 1.0 for stage in beside.report["memory"]["stages"])
    assert len(alone.losses()) == 48
    assert alone.losses() == beside.losses(), "to the last bit"
    assert alone.losses()[-1] < alone.losses()[0] - 0.5
    between = {span["version"] for spans in beside.serving_batches().values() for span in spans}
    assert len(between) > 3, "requests must have been served in between"


def test_paced_tokens_are_the_whole_models_and_carry_their_versions(lemix_run: Run, tmp_path: Path) -> None:
    """Greedy ones, with steps of training that are too small to change a weight."""
    model = hugging_face("llama", tied=True)
    model.save_pretrained(tmp_path / "model")
    training = sums_training(release="sync", schedule="gpipe", micro_batches_per_step=2, learning_rate=1e-30)
    recipe = {
        "name": "generate",
        "nodes": {"count": 2, "stages": 2},
        "model": {"path": str(tmp_path / "model")},
        "serving": poisson(rate=8, requests=24, mode="generate", max_new_tokens=6),
        "training": training,
        "policy": {"placement": "round-robin"},
        "slo": {"tpot_ms": 100, "ttft_ms": 500},
    }
    run = lemix_run(recipe)
    requests = load_workload(load_recipe(tmp_path / "generate.yaml")).requests
    expected = {request.id: hf_greedy(model, list(request.tokens), request.output_tokens) for request in requests}
    assert {task["id"]: task["output"] for task in run.tasks("serving")} == expected
    assert run.report["pace_ms"] == {"ttft": 500, "tpot": 100}
    served = run.tasks("serving")
    assert {task["node"] for task in served} == {0, 1}
    for task in served:
        assert task["outcome"] == "finished"
        assert 1 <= len(task["output"]) <= 6
        assert task["versions"][0] <= task["versions"][1]
        assert task["arrival"] <= task["placed"] <= task["first_token"] <= task["finished"]
    assert run.report["serving"]["tpot_ms"]["p50"] > 0


def test_separate_nodes_serve_copied_weights(lemix_run: Run) -> None:
    run = lemix_run(
        {
            "name": "separate",
            "nodes": {"count": 2, "stages": 2},
            "model": {"config": tiny_llama()},
            "serving": poisson(rate=10, requests=40),
            "training": sums_training(release="sync", micro_batches_per_step=2),
            "policy": {"placement": "separate", "training_nodes": 1, "copy_every_steps": 2},
        }
    )
    spans = list(run.lines("spans.jsonl"))
    assert {span["node"] for span in spans if span["kind"] == "serve"} == {0}
    assert {span["node"] for span in spans if span["kind"] in ("forward", "backward", "step")} == {1}
    copies = [span for span in spans if span["kind"] == "copy"]
    assert {span["node"] for span in copies} == {0}
    served = sorted(run.tasks("serving"), key=lambda task: task["finished"])
    assert all(version % 2 == 0 for task in served for version in task["versions"])
    assert served[-1]["versions"][0] > served[0]["versions"][0]
    assert mean_nll(served[-10:]) < mean_nll(served[:10]) - 0.5, "what was trained on the other node is served here"


def test_requests_beyond_the_models_context_and_steps_that_break_are_counted(lemix_run: Run) -> None:
    gpt2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 257, "n_positions": 48}
    run = lemix_run(
        {
            "name": "context",
            "nodes": {"count": 1, "stages": 1},
            "model": {"config": gpt2 | {"bos_token_id": 256, "eos_token_id": 256}},
            "serving": poisson(rate=50, requests=30),
            "training": sums_training(
                sequence_length=32, release="sync", micro_batches=20, learning_rate=1e38, on_nan="skip"
            ),
        }
    )
    serving = run.report["serving"]
    assert serving["rejected"] == sum(task["prompt_tokens"] > 48 for task in run.tasks("serving")) > 0
    assert serving["finished"] + serving["rejected"] == serving["received"] == 30
    training = run.report["training"]
    assert training["finished"] == 20 and training["steps"] + training["skipped_steps"] == 20
    assert training["skipped_steps"] > 10 and training["lost_losses"] > 10 and not training["stopped"]
    shown = read_progress(RunDir(run.path))
    assert shown is not None and shown.skipped == training["skipped_steps"]
    assert shown.lost_losses == training["lost_losses"] and shown.trained == 20


def test_the_loss_on_held_out_samples_is_what_training_on_them_would_begin_with(lemix_run: Run, tmp_path: Path) -> None:
    sample = {"prompt": "Ada had 3 coins. ", "completion": "How many? 3 - 1 = 2."}
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text(json.dumps(sample) + "\n")
    recipe = {"name": "on-it", "nodes": {"count": 1, "stages": 2}, "model": {"config": tiny_llama()}}
    training = sums_training(release="sync", packing="padded", micro_batches=1, micro_batch_size=1)
    on_it = lemix_run(recipe | {"training": training | {"data": {"path": str(held_out)}}})
    plain = sums_training(release="sync", micro_batches=12)
    told = lemix_run(recipe | {"name": "told", "training": plain | {"held_out": {"path": str(held_out)}}})
    untold = lemix_run(recipe | {"name": "untold", "training": plain})
    found = told.report["training"]["held_out"]
    assert found["documents"] == 1 and found["tokens"] == len(sample["completion"]) + 1
    assert found["before"] == pytest.approx(on_it.losses()[0], rel=1e-5)
    assert found["after"] < found["before"]
    assert told.losses() == untold.losses(), "taking the loss changes nothing"
    shown = read_progress(RunDir(told.path))
    assert shown is not None and [each.loss for each in shown.held_out] == [found["before"], found["after"]]


def test_emulated_stages_run_the_whole_runtime(lemix_run: Run) -> None:
    run = lemix_run(
        {
            "name": "emulated",
            "nodes": {"count": 2, "stages": 2},
            "engine": {"kind": "emulated", "coefficients": str(A100), "max_batch_requests": 1},
            "serving": {"source": {"kind": "constant", "rate": 20, "requests": 40, "lengths": "lmsys-chat"}},
            "training": {"share": 0.5, "sequence_length": 256},
        }
    )
    assert run.report["serving"]["finished"] == run.report["training"]["finished"] == 40
    assert run.report["training"]["loss_last"] is None
    assert run.report["serving"]["nll"] is None
    lengths = {task["id"]: task["prompt_tokens"] for task in run.tasks("serving")}
    for span in run.lines("spans.jsonl"):
        if span["kind"] == "serve":
            length = lengths[span["task"]]
            predicted = 16 * (0.1913e-3 + 1.676e-6 * length + 2.367e-10 * length**2)
            assert span["end"] - span["start"] >= predicted * (1 - 1e-6)


def test_stage_times_are_learned_from_every_pass_of_a_run(lemix_run: Run, tmp_path: Path) -> None:
    """Forecasts start from times 3 times too long; what is learned is what the spans say, rests of training not counted."""
    wrong = yaml.safe_load(A100.read_text())
    forward = wrong["per_layer"]["forward"]
    wrong["per_layer"]["forward"] = {name: 3 * value for name, value in forward.items()}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    run = lemix_run(
        {
            "name": "learn",
            "nodes": {"count": 1, "stages": 2},
            "engine": {"kind": "emulated", "coefficients": str(A100), "max_batch_requests": 2},
            "serving": {"source": {"kind": "poisson", "rate": 12, "requests": 60, "lengths": "lmsys-chat"}},
            "training": {"share": 0.3, "sequence_length": 256},
            "policy": {"coefficients": str(tmp_path / "wrong.yaml")},
        }
    )
    prompts = {task["id"]: task["prompt_tokens"] for task in run.tasks("serving")}
    passes: dict[Any, list[dict[str, Any]]] = {}
    for span in run.lines("spans.jsonl"):
        if span["kind"] in ("serve", "forward", "backward"):
            what = span["batch"] if span["kind"] == "serve" else span["task"]
            passes.setdefault((span["stage"], span["kind"], what), []).append(span)
    assert any(len({span["start"] for span in spans}) > 1 for spans in passes.values()), "training must have rested"
    logs: dict[tuple[int, str], list[float]] = {}
    for (stage, kind, _), spans in passes.items():
        lengths = {span["task"]: prompts.get(span["task"], 256) for span in spans}
        worked = sum(end - start for start, end in {(span["start"], span["end"]) for span in spans})
        shape = Shape.of(list(lengths.values()))
        sizes = {"a": 1, "b": shape.tokens, "c": shape.squares, "d": 0}
        file = 3 * 16 * (2 if kind == "backward" else 1) * sum(forward[name] * size for name, size in sizes.items())
        logs.setdefault((stage, kind), []).append(math.log(worked / file))
    told = json.loads((run.path / "learned.json").read_text())
    assert told["source"] == str(tmp_path / "wrong.yaml")
    learned = {(lesson["stage"], lesson["kind"]): lesson for lesson in told["learned"]}
    assert learned.keys() == logs.keys() == {(s, kind) for s in (0, 1) for kind in ("serve", "forward", "backward")}
    for key, values in logs.items():
        assert learned[key]["passes"] == len(values) <= 100
        assert learned[key]["ratio"] == pytest.approx(math.exp(statistics.mean(values)))
        assert learned[key]["error_after"] < learned[key]["error_before"]
    assert {(drift["stage"], drift["kind"]) for drift in run.report["drift"]} >= {(0, "serve"), (1, "serve")}
    served = sorted(run.tasks("serving"), key=lambda task: task["placed"])
    first = served[0]["predicted_response_s"]
    # The first request is forecast by the wrong file alone, perhaps behind training.
    length = served[0]["prompt_tokens"]
    assert first >= 3 * 32 * (forward["a"] + forward["b"] * length + forward["c"] * length**2) * (1 - 1e-9)
    right = [32 * (forward["a"] + forward["b"] * length + forward["c"] * length**2) for length in prompts.values()]
    assert run.report["t0_ms"] == pytest.approx(1e3 * statistics.mean(right)), "of the hardware, not of the wrong file"


def overload(name: str, **policy: Any) -> dict[str, Any]:
    """Requests that come several times as fast as they can be served, beside training without an end."""
    return {
        "name": name,
        "nodes": {"count": 1, "stages": 2},
        "engine": {"kind": "emulated", "coefficients": str(A100), "max_batch_requests": 1},
        "serving": {
            "source": {"kind": "constant", "rate": 200, "requests": 120, "lengths": "lmsys-chat"},
            "max_prompt_tokens": 512,
        },
        "training": {"sequence_length": 256},
        "policy": policy,
    }


def shares_of_training(run: FinishedRun) -> list[float]:
    """Of each stage's busy time while requests were waiting for it all the time."""
    spans = list(run.lines("spans.jsonl"))
    arrived = min(task["arrival"] for task in run.tasks("serving"))
    shares = []
    for stage in (0, 1):
        last = max(span["start"] for span in spans if span["kind"] == "serve" and span["stage"] == stage)
        busy = {
            (s["kind"], s["start"], s["end"]) for s in spans if s["stage"] == stage and arrived <= s["start"] <= last
        }
        trained = sum(end - start for kind, start, end in busy if kind != "serve")
        shares.append(trained / sum(end - start for _, start, end in busy))
    return shares


def test_training_has_its_minimum_share_while_there_is_more_to_serve_than_can_be(lemix_run: Run) -> None:
    claimed = lemix_run(overload("claimed", minimum_training_share=0.3, admission="none"))
    without = lemix_run(overload("without", minimum_training_share=0.0, admission="none"))
    for run in (claimed, without):
        assert run.report["serving"]["finished"] == run.report["serving"]["received"] == 120
    # The claim is to 0.3 of the time that the machine itself leaves to the run.
    assert min(shares_of_training(claimed)) > 0.15
    assert shares_of_training(without)[0] < 0.1


def test_turns_of_a_conversation_come_after_the_answers(lemix_run: Run) -> None:
    source = {"kind": "poisson", "rate": 60, "requests": 24, "lengths": "lmsys-chat"}
    run = lemix_run(
        {
            "name": "turns",
            "nodes": {"count": 2, "stages": 2},
            "engine": {"kind": "emulated", "coefficients": str(A100)},
            "serving": {"source": source, "conversations": {"turns": 3, "think_s": 0.05}},
        }
    )
    served = {task["id"]: task for task in run.tasks("serving")}
    assert len(served) == 24
    for number in range(24):
        if number % 3:
            assert served[f"r{number}"]["arrival"] > served[f"r{number - 1}"]["finished"]


@pytest.mark.slow
def test_all_is_answered_without_serving_first_and_without_yielding(lemix_run: Run) -> None:
    run = lemix_run(
        {
            "name": "plain",
            "nodes": {"count": 2, "stages": 2},
            "model": {"config": tiny_llama()},
            "serving": poisson(rate=20, requests=60),
            "training": sums_training(release="sync", micro_batches_per_step=2, micro_batches=24),
            "policy": {"serving_first": False, "yield_training": False, "minimum_training_share": 0.0},
        }
    )
    assert run.report["serving"]["finished"] == run.report["serving"]["received"] == 60
    assert run.report["training"]["finished"] == 24
    assert run.report["training"]["steps"] == 12
    assert run.report["weight_versions"]["mixed_batches"] == 0
    passes = [
        (s["stage"], s["kind"], s["task"]) for s in run.lines("spans.jsonl") if s["kind"] in ("forward", "backward")
    ]
    assert len(passes) == len(set(passes)) == 24 * 2 * 2, "no pass rests"


def test_a_scheduler_that_is_told_the_same_decides_the_same(lemix_run: Run) -> None:
    run = lemix_run(
        {
            "name": "replay",
            "nodes": {"count": 2, "stages": 2},
            "engine": {"kind": "emulated", "coefficients": str(A100)},
            "serving": {"source": {"kind": "poisson", "rate": 40, "requests": 80, "lengths": "lmsys-chat"}},
            "training": {"share": 0.3, "sequence_length": 256, "micro_batches_per_step": 2},
        }
    )
    recipe = load_recipe(run.path / "recipe.yaml")
    scheduler = make_scheduler(
        recipe, load_hardware(recipe), json.loads((run.path / "facts.json").read_bytes())["t0_s"]
    )
    decided = {}
    for event in read_events(run.path):
        for place in scheduler.handle(event):
            assert isinstance(place, Place)
            decided[place.task] = (place.node, place.eligible, event.time, place.response)
    served, trained = run.tasks("serving"), run.tasks("training")
    assert len(decided) == len(served) + len(trained) > 100
    for task in served:
        node, eligible, _, response = decided[task["number"]]
        assert (task["node"], task["placed"], task["predicted_response_s"]) == (node, eligible, response)
    for task in trained:
        assert (task["node"], task["eligible"], task["placed"]) == decided[task["number"]][:3]
