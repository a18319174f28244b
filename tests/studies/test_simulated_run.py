"""Simulated runs of recipes: files as a run writes them, the same every time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import load_recipe
from lemix_hpc.policy.events import Place
from lemix_hpc.profiling.hardware import load_hardware
from lemix_hpc.records.reader import read_run
from lemix_hpc.records.schema import Span
from lemix_hpc.report.build import build_report
from lemix_hpc.run_setup.scheduler_setup import make_scheduler
from lemix_hpc.studies.simulated_run import Simulated, simulate

REPOSITORY = Path(__file__).resolve().parents[2]
COEFFICIENTS = REPOSITORY / "profiling" / "nvidia-a100-80gb" / "llama-2-7b-float16.yaml"

RECIPE = f"""\
nodes: {{count: 3, stages: 2}}
engine: {{kind: emulated, coefficients: {COEFFICIENTS}, max_batch_requests: 1}}
serving:
  source: {{kind: poisson, rate: 30, requests: 200, lengths: lmsys-chat}}
training: {{share: 0.5, micro_batches_per_step: 3}}
"""

Simulate = Callable[..., Simulated]


@pytest.fixture
def simulated(tmp_path: Path) -> Simulate:
    """Simulates the recipe with some keys set otherwise."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return lambda *overrides: simulate(load_recipe(tmp_path / "recipe.yaml", overrides))


def test_everything_is_served_and_trained(simulated: Simulate) -> None:
    summary = simulated().summary
    assert (summary["serving"]["received"], summary["serving"]["finished"]) == (200, 200)
    assert (summary["training"]["finished"], summary["training"]["steps"]) == (200, 67)
    assert summary["weight_versions"]["mixed_batches"] == 0
    assert summary["duration_s"] >= 200 / 30 * 0.5


def test_the_files_are_those_of_a_run_and_the_same_every_time(simulated: Simulate, tmp_path: Path) -> None:
    directories = [tmp_path / "one", tmp_path / "two"]
    for directory in directories:
        directory.mkdir()
        run = simulated()
        run.write(directory)
        assert read_run(directory) == run.records
    files = sorted(path.name for path in directories[0].iterdir())
    assert {"facts.json", "spans.jsonl", "tasks.jsonl", "report.json"} <= set(files)
    for name in files:
        assert (directories[0] / name).read_bytes() == (directories[1] / name).read_bytes()
    assert build_report(directories[0]) == simulated().summary


def test_another_seed_gives_another_run(simulated: Simulate) -> None:
    assert simulated().records.spans != simulated("seed=1").records.spans


def test_generated_tokens_are_all_there(simulated: Simulate) -> None:
    served = simulated(
        "serving.mode=generate", "serving.max_new_tokens=20", "engine.max_batch_requests=4"
    ).records.served
    assert all(1 <= len(task.output) <= 20 for task in served)
    assert max(len(task.output) for task in served) == 20
    for task in served:
        assert task.first_token is not None and task.finished is not None
        assert task.first_token < task.finished or len(task.output) == 1


def test_endless_training_stops_when_serving_is_done(simulated: Simulate) -> None:
    records = simulated("training.share=null").records
    assert len(records.trained) % 3 == 0
    last = max(task.finished or 0.0 for task in records.served)
    assert last < records.facts.duration_s < last + 5.0


def test_separate_nodes_serve_or_train(simulated: Simulate) -> None:
    records = simulated("policy.placement=separate", "policy.training_nodes=1").records
    assert {task.node for task in records.served} == {0, 1}
    assert {task.node for task in records.trained} == {2}


def test_training_alone(simulated: Simulate) -> None:
    summary = simulated("serving=null", "training.share=null", "training.micro_batches=10").summary
    assert summary["training"]["finished"] == 10


def test_without_coefficients_there_are_no_times(simulated: Simulate) -> None:
    with pytest.raises(UserError, match=r"engine\.coefficients: stages that do not compute take their times"):
        simulated("engine.kind=torch", "engine.coefficients=null")


def test_a_new_scheduler_decides_the_same_when_it_is_told_the_same(tmp_path: Path) -> None:
    slow = tmp_path / "slow.yaml"
    slow.write_text(COEFFICIENTS.read_text().replace("1.676e-6", "3e-6"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "recipe.yaml", [f"policy.coefficients={slow}"])
    run = simulate(recipe, events=True)
    hardware = load_hardware(recipe)
    scheduler = make_scheduler(recipe, hardware, run.records.facts.t0_s)
    places = {}
    for event in run.events:
        for decision in scheduler.handle(event):
            assert isinstance(decision, Place)
            places[decision.task] = (decision.node, decision.response)
    assert {
        task.number: (task.node, task.predicted_response_s) for task in run.records.served
    }.items() <= places.items()
    assert {task.number: task.node for task in run.records.trained} == {
        number: node for number, (node, _) in places.items() if number >= len(run.records.served)
    }


def test_forecasts_learn_what_passes_really_take(tmp_path: Path) -> None:
    slow = tmp_path / "slow.yaml"
    slow.write_text(COEFFICIENTS.read_text().replace("1.676e-6", "3e-6"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    believed = f"policy.coefficients={slow}"
    error = {}
    for recalibrate in ("true", "false"):
        recipe = load_recipe(tmp_path / "recipe.yaml", [believed, f"policy.recalibrate={recalibrate}"])
        run = simulate(recipe)
        error[recalibrate] = run.summary["forecast_error_t0"]["mean"]
        assert run.learned.learned
    assert error["true"] < 0.5 * error["false"]


def test_the_best_split_meets_as_many_limits_as_any(simulated: Simulate) -> None:
    separate = ("policy.placement=separate", "serving.source.rate=60")
    every = [simulated(*separate, f"policy.training_nodes={count}") for count in (1, 2)]
    best = simulated(*separate, "policy.training_nodes=auto")
    assert best.summary["serving"]["slo"]["5"] == max(run.summary["serving"]["slo"]["5"] for run in every)
    assert best.records in [run.records for run in every]


def test_turns_of_a_conversation_wait_for_their_answers(simulated: Simulate) -> None:
    run = simulated("serving.conversations={turns: 4, think_s: 0.5}", "serving.max_prompt_tokens=4096")
    served = {task.id: task for task in run.records.served}
    assert len(served) == 200
    assert all(task.outcome == "finished" for task in served.values())
    for number in range(200):
        task = served[f"r{number}"]
        if number % 4:
            before = served[f"r{number - 1}"]
            assert before.finished is not None
            assert task.arrival > before.finished
            assert task.prompt_tokens >= min(4096, before.prompt_tokens + 1)


def test_a_turn_after_one_that_is_refused_comes_by_itself(simulated: Simulate, tmp_path: Path) -> None:
    run = simulated(
        "serving.conversations={turns: 4, think_s: 0.5}", "cluster.time=00:00:05", "policy.drain_reserve_s=1"
    )
    outcomes = [task.outcome for task in run.records.served]
    assert len(outcomes) == 200
    assert outcomes.count("rejected") > 20
    run.write(tmp_path)
    assert read_run(tmp_path).served == run.records.served


def test_limits_in_milliseconds_are_reported(simulated: Simulate) -> None:
    serving = simulated("slo.response_ms=1e9", "slo.ttft_ms=1e-3").summary["serving"]
    assert serving["slo_ms"] == {"ttft": 0.0, "response": 1.0, "all": 0.0}


def test_slower_nodes_get_fewer_tokens_and_take_longer(simulated: Simulate, tmp_path: Path) -> None:
    slow = tmp_path / "slow.yaml"
    slow.write_text(COEFFICIENTS.read_text().replace("1.676e-6", "6e-6"))
    kinds = f"nodes.kinds=[{{count: 2}}, {{count: 1, coefficients: {slow}}}]"
    records = simulated(kinds, "training=null", "serving.source.rate=80").records
    tokens = [sum(task.prompt_tokens for task in records.served if task.node == node) for node in range(3)]
    seconds = [sum(span.end - span.start for span in records.spans if span.node == node) for node in range(3)]
    assert tokens[2] < min(tokens[:2])
    assert seconds[2] / tokens[2] > 1.5 * seconds[0] / tokens[0]


def test_real_times_spread_around_those_of_the_file(simulated: Simulate) -> None:
    without, spread = simulated("training=null"), simulated("training=null", "simulate.latency_error=0.3")
    ratios = [
        (real.end - real.start) / (given.end - given.start)
        for real, given in zip(by_task(spread), by_task(without), strict=True)
    ]
    assert statistics.stdev(map(math.log, ratios)) == pytest.approx(0.3, rel=0.1)
    assert statistics.mean(map(math.log, ratios)) == pytest.approx(0.0, abs=0.05)


def by_task(run: Simulated) -> list[Span]:
    return sorted(run.records.spans, key=lambda span: (span.task, span.stage))


def test_nothing_is_started_that_would_outlive_the_allocation(simulated: Simulate) -> None:
    run = simulated("cluster.time=00:00:05", "policy.drain_reserve_s=1")
    summary = run.summary
    assert 3.5 < max(span.end for span in run.records.spans) < 4.5
    assert 0 < summary["serving"]["rejected"] < 200
    assert summary["serving"]["finished"] + summary["serving"]["rejected"] == 200
